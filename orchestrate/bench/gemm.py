"""W6Ax products, shape by shape: what is measured, and what the times mean.

Floor: bytes of the packed weight and its scales over the read bandwidth of the run. A kernel alone
is held against max(1.05 x floor, floor + 1.3 us): a launch has a begin and an end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.bench import peers

W6AX = ("stream", "wgmma", "mma")  # what the selector chooses from
OURS = (*W6AX, "btc", "weight-only")
THEIRS = ("cublaslt-int8", "cublaslt-fp16", "cublas-nn")
STREAM_TOKENS = 32  # the most that the decode kernels take
_BTC_TOKENS = 64  # from where on a bit-serial product is not worth its time
_WEIGHT_ONLY_TOKENS = 64  # the most that its kernels take
_MANY_TOKENS = 16  # up to which the prefill kernels are not
_GROUP = 128
_BITS = 6 + 16 / _GROUP
_SHAPE = re.compile(r"(\d+)x(\d+)(?:[:\s]+a([68]))?")


@dataclass(frozen=True)
class Shape:
    """A weight [n, k]; act_bits of the activations in front of it; the model it is from."""

    n: int
    k: int
    act_bits: int = 6
    model: str = ""

    def __str__(self) -> str:
        return f"{self.n}x{self.k}" + ("*" if self.act_bits == 8 else "")

    @property
    def bytes(self) -> float:
        """Of the packed codes and fp16 scales, without padding."""
        return self.n * self.k * _BITS / 8


def _model(name: str, hidden: int, inter: int, *, qkv: int | None = None) -> list[Shape]:
    return [
        Shape(qkv or 3 * hidden, hidden, 6, name),
        Shape(hidden, hidden, 6, name),
        Shape(inter, hidden, 6, name),
        Shape(hidden, inter, 8, name),
    ]


# The linears of FlexQ's kernel figure: QKV, output, gate or up, down.
SHAPES: dict[str, list[Shape]] = {
    "paper": [
        *_model("LLaMA-7B", 4096, 11008),
        *_model("LLaMA-30B", 6656, 17920),
        *_model("LLaMA-2-13B", 5120, 13824),
        *_model("LLaMA-2-70B", 8192, 28672),
        *_model("OPT-30B", 7168, 28672),
    ],
    "llama3": [
        *_model("LLaMA-3-8B", 4096, 14336, qkv=6144),
        *_model("LLaMA-3-70B", 8192, 28672, qkv=10240),
    ],
}


def parse_shapes(text: str) -> list[Shape]:
    """Names of SHAPES, weights as NxK or NxK:a8, and files of such lines, separated by commas."""
    shapes: list[Shape] = []
    for part in (part.strip() for part in text.split(",")):
        if part in SHAPES:
            shapes += SHAPES[part]
        elif (one := _parse(part)) is not None:
            shapes.append(one)
        else:
            shapes += _of_file(Path(part))
    return shapes


def _parse(text: str) -> Shape | None:
    match = _SHAPE.fullmatch(text)
    return None if match is None else Shape(int(match[1]), int(match[2]), int(match[3] or 6))


def _of_file(path: Path) -> list[Shape]:
    if not path.is_file():
        raise ConfigError(
            f"--shapes has '{path}', which is neither a list of shapes nor a file.",
            hint=f"use {', '.join(SHAPES)}, NxK, NxK:a8, or a file of such lines.",
        )
    shapes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        one = _parse(text)
        if one is None:
            raise ConfigError(f"{path}, line {number}: '{text}' is no shape.", hint="4096x11008:a8")
        shapes.append(one)
    return shapes


def implementations_of(m: int, wanted: Sequence[str]) -> list[str]:
    """Those of `wanted` that are worth measuring at m tokens; a bit-serial prefill is not."""
    skipped = {"wgmma", "mma"} if m <= _MANY_TOKENS else set()
    if m > STREAM_TOKENS:
        skipped.add("stream")
    if m > _BTC_TOKENS:
        skipped.add("btc")
    if m > _WEIGHT_ONLY_TOKENS:
        skipped.add("weight-only")
    return [name for name in wanted if name not in skipped]


def measure(
    shapes: Iterable[Shape],
    ms: Sequence[int],
    *,
    implementations: Sequence[str],
    read_bandwidth: float,
    replays: int,
    sustained_s: float,
    observe: Callable[[dict[str, Any]], None],
    against: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """A row for each shape and m, in that order; observe(row) after each.

    read_bandwidth: bytes per second, of this run. against: of peers.PEERS; those that are not
    installed are refused in each row. Raises DeviceError without a GPU.
    """
    from flexq_ft import _native

    shapes = list(shapes)
    found, absent = peers.find(against)
    for name in found:
        peers.PEERS[name].prepare(list(dict.fromkeys((s.n, s.k) for s in shapes)), ms)
    rows = []
    for m in ms:
        for shape in shapes:
            got = _native.measure_w6ax(
                m=m,
                n=shape.n,
                k=shape.k,
                act_bits=shape.act_bits,
                implementations=implementations_of(m, implementations),
                replays=replays,
                sustained_s=sustained_s,
            )
            theirs, refused = peers.measure(
                found, m=m, n=shape.n, k=shape.k, replays=replays, sustained_s=sustained_s
            )
            times: list[dict[str, Any]] = [*({**time} for time in got["times"]), *theirs]
            row = {
                **got,
                "times": times,
                "refused": [*got["refused"], *absent, *refused],
                "model": shape.model,
                **derived(shape, m, times, read_bandwidth),
            }
            rows.append(row)
            observe(row)
    return rows


def explain(
    shapes: Iterable[Shape], ms: Sequence[int], *, implementations: Sequence[str]
) -> list[str]:
    """What the selector says of each product, and of the same without quantised activations.

    Raises DeviceError without a GPU.
    """
    from flexq_ft import _native

    lines: list[str] = []
    for shape in shapes:
        all_bits = [shape.act_bits] if set(W6AX) & set(implementations) else []
        all_bits += [16] if "weight-only" in implementations else []
        for m in ms:
            for bits in all_bits:
                text = _native.explain_w6ax(m=m, n=shape.n, k=shape.k, act_bits=bits)
                note, *mine = text.splitlines()
                lines += mine if lines else [note, *mine]  # all have the same table
    return lines


def measure_quantizers(shapes: Iterable[Shape], ms: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each depth and m: microseconds of the quantiser alone and inside other ops."""
    from flexq_ft import _native

    depths = sorted({(shape.k, shape.act_bits) for shape in shapes})
    return [
        {"m": m, "k": k, "act_bits": bits, **_native.measure_quantizers(m=m, k=k, act_bits=bits)}
        for m in ms
        for k, bits in depths
    ]


def derived(
    shape: Shape, m: int, times: Sequence[dict[str, Any]], read_bandwidth: float
) -> dict[str, Any]:
    """Floor and target of a row, and of its fastest kernel of ours what that means.

    Weight-only is the best where no W6Ax kernel was measured: it is another product.
    """
    floor = shape.bytes / read_bandwidth * 1e6
    target = max(1.05 * floor, floor + 1.3)
    by_name = {time["implementation"]: time for time in times}
    ours = [by_name[name] for name in W6AX if name in by_name]
    ours = ours or [by_name[name] for name in ("weight-only",) if name in by_name]
    best = min(ours, key=time_of, default=None)
    us = None if best is None else time_of(best)
    peer = min((by_name[name] for name in peer_names(times)), key=time_of, default=None)

    def over(name: str) -> float | None:
        return time_of(by_name[name]) / us if us and name in by_name else None

    return {
        "floor_us": floor,
        "target_us": target,
        "best": None if best is None else best["implementation"],
        "us": us,
        "tb_s": shape.bytes / us / 1e6 if us else None,
        "tops": 2 * m * shape.n * shape.k / us / 1e6 if us else None,
        "share_of_bandwidth": floor / us if us else None,
        "over_target": us / target if us else None,
        "over_int8": over("cublaslt-int8"),
        "over_fp16": over("cublaslt-fp16"),
        "over_nn": over("cublas-nn"),
        "over_btc": over("btc"),
        "over_weight_only": over("weight-only"),
        "peer": None if peer is None else peer["implementation"],
        "over_peer": None if peer is None else over(peer["implementation"]),
        "over_peers": {name: over(name) for name in peer_names(times)},
    }


def peer_names(times: Iterable[dict[str, Any]]) -> list[str]:
    """Of the implementations that other packages have."""
    names = dict.fromkeys(time["implementation"] for time in times)
    return [name for name in names if name not in (*OURS, *THEIRS)]


def time_of(time: dict[str, Any]) -> float:
    """Sustained where that was measured."""
    return float(time["sustained_us"] or time["us"])


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there."""
    logs = [log(value) for value in values if value]
    return exp(sum(logs) / len(logs)) if logs else None


def choices(rows: Sequence[dict[str, Any]], *, gpu: str) -> str:
    """The fastest kernels, as a table for flexq_kernels/gpu/selector.h."""
    lines = ["# flexq w6ax choices 1", f"# gpu {gpu}", "n\tk\tm\tfamily\tconfig\tus"]
    for row in sorted(rows, key=lambda r: (r["n"], r["k"], r["m"])):
        times = [t for t in row["times"] if t["implementation"] == row["best"] in W6AX]
        for time in times:
            cells = (row["n"], row["k"], row["m"], row["best"], time["config"])
            lines.append("\t".join(map(str, cells)) + f"\t{time_of(time):.2f}")
    return "\n".join(lines) + "\n"
