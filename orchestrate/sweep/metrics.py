"""The `metrics` of a row from its samples; rows of several rounds are joined by their samples."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from flexq_ft.orchestrate.bench.roofline import SUSPECT_SHARE, share_of_bandwidth
from flexq_ft.orchestrate.bench.samples import percentile
from flexq_ft.orchestrate.sweep.store import Row

RATES = ("prefill_tok_s", "decode_tok_s", "ttft_ms", "tpot_ms")


def latency_name(tokens: int) -> str:
    """Of the time from the first prompt token handed over to so many tokens received."""
    return f"latency_{tokens}_ms"


def finished_metrics(samples: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Medians over requests, percentiles over their steps; None where nothing was timed.

    samples: a value a request of RATES and of latency_name(), and the list of its step_ms.
    measured: what no clock told: sizes, batch, read_bandwidth_gb_s, and `lengths`, each with
    output_tokens and bytes_per_step.
    """
    return {
        **measured,
        **{name: statistics.median(samples[name]) if name in samples else None for name in RATES},
        "lengths": [_of_length(length, samples, measured) for length in measured["lengths"]],
        "samples": dict(samples),
    }


def _of_length(
    length: Mapping[str, Any], samples: Mapping[str, Any], measured: Mapping[str, Any]
) -> dict[str, Any]:
    """What the first output_tokens of every request say."""
    tokens, needed = length["output_tokens"], length["bytes_per_step"]
    requests = [steps[: tokens - 1] for steps in samples["step_ms"]]
    steps = [ms for request in requests for ms in request]
    mean_ms = statistics.median(map(statistics.fmean, requests)) if steps else None
    bandwidth = 1e9 * measured["read_bandwidth_gb_s"]
    return {
        "output_tokens": tokens,
        "latency_ms": statistics.median(samples[latency_name(tokens)]),
        "decode_tok_s": 1e3 * measured["batch"] / mean_ms if mean_ms else None,
        "step_p50_ms": percentile(steps, 0.5) if steps else None,
        "step_p90_ms": percentile(steps, 0.9) if steps else None,
        "bytes_per_step": needed,
        "share_of_floor": share_of_bandwidth(needed, mean_ms, bandwidth) if mean_ms else None,
    }


def flags_of(metrics: Mapping[str, Any]) -> list[str]:
    """suspect: faster than the machine reads."""
    shares = [length["share_of_floor"] or 0.0 for length in metrics["lengths"]]
    return ["suspect"] if max(shares) > SUSPECT_SHARE else []


def joined(rows: Sequence[Row], *, rounds: int) -> Row:
    """One row of a case's rounds: all samples together, the largest peak memory, every flag.

    A round that failed leaves its error beside the numbers of the others. `rounds`: how many are in
    it; if fewer than were asked for, it is flagged `incomplete`, and `mixed` if they are of several
    builds or kinds of machine.
    """
    done = [row for row in rows if row["error"] is None]
    error = next((row["error"] for row in rows if row["error"] is not None), None)
    if not done:
        return {**rows[-1], "rounds": 0}
    last = done[-1]
    flags = dict.fromkeys(flag for row in done for flag in row["flags"] if flag != "suspect")
    if len(done) < rounds:
        flags["incomplete"] = None
    if len({_origin(row) for row in done}) > 1:
        flags["mixed"] = None
    metrics = _joined_metrics([row["metrics"] for row in done])
    return {
        **last,
        "metrics": metrics,
        "flags": [*flags, *flags_of(metrics)],
        "error": error,
        "seconds": sum(row["seconds"] for row in rows),
        "rounds": len(done),
    }


def _origin(row: Row) -> tuple[Any, ...]:
    environment = row["environment"]
    return environment["version"], environment["commit"], row["machine"]["name"]


def _joined_metrics(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    last = parts[-1]
    samples = {
        name: [value for part in parts for value in part["samples"][name]]
        for name in last["samples"]
    }
    measured = {
        **last,
        "peak_memory_bytes": max(part["peak_memory_bytes"] for part in parts),
        "requests": sum(part["requests"] for part in parts),
        "read_bandwidth_gb_s": statistics.median(part["read_bandwidth_gb_s"] for part in parts),
    }
    return finished_metrics(samples, measured)
