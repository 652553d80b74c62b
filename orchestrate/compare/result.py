"""A result file of `sweep` or `bench latency` as entries that can be matched with another's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.sweep.metrics import joined, latency_name
from flexq_ft.orchestrate.sweep.points import model_name, precision_name
from flexq_ft.orchestrate.sweep.report import newest_rows
from flexq_ft.orchestrate.sweep.store import ROWS_NAME, RowStore

Row = dict[str, Any]

# What must be the same for two entries to be of one thing; all else of a config is how it was run.
_KEY = (
    "synthetic_weights", "dtype", "tp", "threads", "batch", "prompt_tokens", "output_tokens",
    "prefill_chunk", "graphs",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A number, with a value for each request where it comes from several."""

    value: float
    samples: Sequence[float] | None = None  # None: nothing that time or noise changes

    def __post_init__(self) -> None:
        if not isinstance(self.value, int | float):
            raise TypeError(f"{self.value!r} is no number")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row. conditions: what two matched entries must share, or their numbers mean different
    things: device, model, protocol of a perplexity."""

    key: tuple[Any, ...]
    label: str
    metrics: dict[str, Measured] = field(default_factory=dict)
    conditions: dict[str, str] = field(default_factory=dict)
    flags: Sequence[str] = ()
    error: str | None = None


@dataclass(frozen=True)
class Result:
    """kind: sweep or bench latency. about: version, commit and time, for the report."""

    path: Path
    kind: str
    about: str
    entries: list[Entry]


def load_result(path: Path) -> Result:
    """A file of `--save` or `--json`, the rows.jsonl of a sweep, or its folder.

    Raises ConfigError if it is none of these, holds no results or what this version does not know,
    or has two rows of one case.
    """
    try:
        return _loaded(path)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"{path} is no result that this version can read.",
            cause=f"{type(error).__name__}: {error}",
            hint="measure again, or compare with the version that wrote it",
        ) from error


def _loaded(path: Path) -> Result:
    if path.is_dir() or path.name == ROWS_NAME:
        kind, rows = "sweep", _sweep_folder(path if path.is_dir() else path.parent)
        environment = rows[-1]["environment"]
    else:
        kind, rows, environment = _document(path)
    entries = [_ENTRIES[kind](row) for row in rows]
    labels: dict[tuple[Any, ...], str] = {}
    for entry in entries:
        if entry.key in labels:
            raise ConfigError(
                f"{path} has two rows of the same case.",
                cause=f"both are {entry.label}.",
                hint="an --out folder for each device, or a sweep without what is there twice",
            )
        labels[entry.key] = entry.label
    commit = (environment.get("commit") or "unknown")[:12]
    about = f"flexq-ft {environment['version']}, commit {commit}, {environment['time']}"
    return Result(path, kind, about, entries)


def _sweep_folder(folder: Path) -> list[dict[str, Any]]:
    cases = RowStore(folder).cases()
    if not cases:
        raise ConfigError(
            f"{folder} holds no rows of a sweep.", hint="the --out folder of flexq-ft sweep"
        )
    rounds = max(map(len, cases.values()))
    return newest_rows(joined(rows, rounds=rounds) for rows in cases.values())


def _document(path: Path) -> tuple[str, list[Any], Mapping[str, Any]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema, results = document["schema"], document["results"]
        environment = document["environment"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a result of flexq-ft.",
            cause=f"{type(error).__name__}: {error}",
            hint="a file of --save FILE.json, or the folder of a sweep",
        ) from error
    kinds = {"flexq-ft/sweep-result/1": "sweep", "flexq-ft/bench-latency/1": "bench latency"}
    if schema not in kinds:
        raise ConfigError(
            f"{path} is a {schema} document, which cannot be compared.",
            hint="results of flexq-ft sweep and of flexq-ft bench latency",
        )
    if not results or "error" not in results[0]:
        raise ConfigError(f"{path} holds no results: it is of a failed or a dry run.")
    return kinds[schema], results, environment


def _entry(row: Row, metrics: dict[str, Measured], conditions: dict[str, str]) -> Entry:
    config, model, machine, error = row["config"], row["model"], row["machine"], row["error"]
    if machine is not None:
        conditions["device"] = f"{machine['name']} ({machine['device'].partition(':')[0]})"
        if machine["device"] == "cpu":
            conditions["threads"] = str(machine["threads"])
    if model is not None:
        conditions["model"] = model["digest"]
        if model["policy"] is not None:
            conditions["policy"] = json.dumps(model["policy"], sort_keys=True)
    name, precision = model_name(row), precision_name(row)
    ranks = f" tp {config['tp']}" if config["tp"] > 1 else ""
    lengths = f"{config['prompt_tokens']}+{config['output_tokens']}"
    return Entry(
        key=(name, precision, *(config.get(part) for part in _KEY)),
        label=f"{name} {precision}{ranks} batch {config['batch']} {lengths}",
        metrics=metrics,
        conditions=conditions,
        flags=row["flags"],
        error=error and f"{error['kind']}: {error['message']}",
    )


def _of_sweep(row: Row) -> Entry:
    metrics: dict[str, Measured] = {}
    conditions: dict[str, str] = {}
    if found := row["metrics"]:
        samples = found["samples"]
        for name in ("prefill_tok_s", "decode_tok_s", "ttft_ms", "tpot_ms"):
            if found[name] is not None:
                metrics[name] = Measured(found[name], samples[name])
        for length in found["lengths"]:
            name = latency_name(length["output_tokens"])
            metrics[name] = Measured(length["latency_ms"], samples[name])
        if (share := found["lengths"][-1]["share_of_floor"]) is not None:
            metrics["share_of_floor"] = Measured(share, samples["decode_tok_s"])
        for name in ("peak_memory_bytes", "weights_bytes"):
            metrics[name] = Measured(found[name])
    if quality := row["quality"]:
        ppl, agreement = quality["ppl"], quality["agreement"]
        metrics["perplexity"] = Measured(ppl["perplexity"])
        conditions["perplexity"] = ppl["description"]
        if agreement is not None:
            metrics["agreement"] = Measured(agreement["top1"])
            conditions["agreement"] = f"with {agreement['with']}"
    return _entry(row, metrics, conditions)


def _of_bench(row: Row) -> Entry:
    if row["error"] is not None:
        return _entry(row, {}, {})
    samples, prefill, decode = row["samples"], row["prefill"], row["decode"]
    metrics = {
        "prefill_tok_s": _rate(prefill["tok_s"], prefill["tokens"], samples["ttft_ms"]),
        "ttft_ms": Measured(prefill["ttft_ms"]["p50"], samples["ttft_ms"]),
    }
    if decode is not None:
        tpot = samples["tpot_ms"]
        metrics["decode_tok_s"] = _rate(decode["tok_s"], row["config"]["batch"], tpot)
        metrics["tpot_ms"] = Measured(decode["tpot_ms"]["p50"], tpot)
        metrics["share_of_bandwidth"] = Measured(
            decode["share_of_bandwidth"], [1 / ms for ms in samples["decode_device_ms"] or tpot]
        )
    metrics["memory_bytes"] = Measured(row["memory_bytes"]["total"])
    return _entry(row, metrics, {})


def _rate(value: float, tokens: int, ms: Iterable[float]) -> Measured:
    return Measured(value, [1e3 * tokens / each for each in ms])


_ENTRIES: dict[str, Callable[[Row], Entry]] = {"sweep": _of_sweep, "bench latency": _of_bench}
