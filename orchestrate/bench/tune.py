"""Which products a model needs on a GPU, and the table of their fastest kernels."""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexq_ft.errors import ConfigError

# A step computes logits of its last tokens only: large buckets of the head are never asked for.
HEAD_TOKENS = 256
SCHEMES = ("fp16", "w8a16", "w8a8")
_WEIGHT = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class Weight:
    """A matrix [n, k] of a linear. is_head: of the vocabulary, in floats under every scheme."""

    n: int
    k: int
    is_head: bool = False

    def __str__(self) -> str:
        return f"{self.n}x{self.k}"


def weights_of_shape(ini: Path, *, tp: int = 1) -> list[Weight]:
    """The linears of a model's INI on one of tp ranks, QKV and gate + up fused as the loader does.

    Raises ConfigError if tp ranks cannot share them.
    """
    parser = configparser.ConfigParser()
    parser.read_string(ini.read_text(encoding="utf-8"))
    section = parser[parser.sections()[0]]
    heads, head_dim = section.getint("head_num"), section.getint("size_per_head")
    kv_heads = section.getint("kv_head_num", fallback=heads)
    inter, vocab = section.getint("inter_size"), section.getint("vocab_size")
    for name, size in (("heads", heads), ("key/value heads", kv_heads), ("inter_size", inter)):
        if size % tp:
            raise ConfigError(f"{ini.stem} has {size} {name}, which {tp} ranks cannot share.")
    hidden, gated = heads * head_dim, section.name == "llama"
    inter //= tp
    return [
        Weight((heads + 2 * kv_heads) * head_dim // tp, hidden),
        Weight(hidden, hidden // tp),
        Weight(2 * inter if gated else inter, hidden),
        Weight(hidden, inter),
        Weight(-(-vocab // tp), hidden, is_head=True),
    ]


def parse_weight(text: str) -> Weight | None:
    """`12288x4096` is a weight of 12288 outputs and 4096 inputs; None if it is not one."""
    match = _WEIGHT.fullmatch(text)
    return None if match is None else Weight(int(match[1]), int(match[2]))


def plan(
    weights: Iterable[Weight], *, schemes: Sequence[str], dtypes: Sequence[str], ms: Sequence[int]
) -> list[dict[str, Any]]:
    """The arguments of `_native.tune_gemm`: every scheme and type of every weight, each once."""
    planned: dict[tuple[str, str, int, int], set[int]] = {}
    for weight in weights:
        wanted = [m for m in ms if not weight.is_head or m <= HEAD_TOKENS]
        for scheme in ("fp16",) if weight.is_head else schemes:
            for dtype in ("int8",) if scheme == "w8a8" else dtypes:
                step = 8 if scheme == "fp16" else 16
                if weight.n % step or weight.k % step:
                    raise ConfigError(
                        f"{scheme} products of a weight {weight} are not for this GPU engine.",
                        cause=f"both sizes must be multiples of {step}.",
                    )
                planned.setdefault((scheme, dtype, weight.n, weight.k), set()).update(wanted)
    return [
        {"scheme": scheme, "dtype": dtype, "n": n, "k": k, "ms": sorted(wanted)}
        for (scheme, dtype, n, k), wanted in planned.items()
        if wanted
    ]


def table_name(gpu: str) -> str:
    """`NVIDIA H100 80GB HBM3` -> `nvidia-h100-80gb-hbm3.tsv`."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".tsv"


def tune(
    work: Sequence[dict[str, Any]],
    *,
    table: str,
    observe: Callable[[int, list[dict[str, Any]], str], None],
    replays: int,
) -> list[dict[str, Any]]:
    """Measure all of it. After each weight observe(how many are done, its rows, the table so far).

    table: the text to add to, or empty. Raises DeviceError without a GPU.
    """
    from flexq_ft import _native

    rows: list[dict[str, Any]] = []
    done = 0

    def after(results: Sequence[Any], text: str) -> None:
        nonlocal done
        done += 1
        new = [dict(result) for result in results]
        rows.extend(new)
        observe(done, new, text)

    _native.tune_gemm(work, table=table, observe=after, replays=replays)
    return rows


def summary(row: dict[str, Any]) -> str:
    """One line on a measured product."""
    weight_bytes = 2 if row["scheme"] == "fp16" else 1
    rate = row["n"] * row["k"] * weight_bytes / row["us"] / 1e6
    tera_ops = 2 * row["m"] * row["n"] * row["k"] / row["us"] / 1e6
    winner = f"skinny {row['config']}" if row["kernel"] == "skinny" else f"cublaslt {row['note']}"
    others = [f for f in row["finalists"] if f["kernel"] != row["kernel"]]
    other = f", {others[0]['kernel']} {others[0]['us']:.2f} us" if others else ""
    refused = f", {len(row['refused'])} refused" if row["refused"] else ""
    return (
        f"{row['scheme']} {row['dtype']} {row['n']}x{row['k']} m={row['m']}: {winner}, "
        f"{row['us']:.2f} us ({rate:.2f} TB/s, {tera_ops:.0f} TOPS){other}; "
        f"{row['returned']} of cuBLASLt's heuristics, {row['skinny']} of ours{refused}"
    )
