"""The rows of a sweep as CSV: a line for each number of output tokens, one for a failed case."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from flexq_ft.orchestrate.sweep.store import Row

_CONFIG = (
    "model", "synthetic_weights", "scheme", "policy", "dtype", "lm_head", "rotate", "smooth",
    "rounding", "step_kernel", "tp", "batch", "prompt_tokens",
)  # fmt: skip
_LENGTH = (
    "output_tokens", "latency_ms", "decode_tok_s", "step_p50_ms", "step_p90_ms", "bytes_per_step",
    "share_of_floor",
)  # fmt: skip
_METRICS = (
    "ttft_ms", "prefill_tok_s", "requests", "read_bandwidth_gb_s", "weights_bytes",
    "peak_memory_bytes",
)  # fmt: skip
_MEMORY = ("weights", "kv_cache", "activations", "workspace", "process", "polled")
COLUMNS = (
    "case_id", *_CONFIG, "device", "device_name", "step_kernel_batch", *_LENGTH, *_METRICS,
    *(f"memory_{name}_bytes" for name in _MEMORY), "perplexity", "perplexity_standard_error",
    "perplexity_ratio", "agreement", "rounds", "flags", "error", "command",
)  # fmt: skip


def to_csv(rows: Sequence[Row]) -> str:
    """What is not known is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerows(_lines(row))
    return out.getvalue()


def _lines(row: Row) -> Iterator[dict[str, Any]]:
    machine, quality, error = row["machine"] or {}, row["quality"] or {}, row["error"]
    ppl, against = quality.get("ppl") or {}, quality.get("agreement") or {}
    line = {
        "case_id": row["case_id"],
        **{name: row["config"].get(name) for name in _CONFIG},
        "device": machine.get("device"),
        "device_name": machine.get("name"),
        "step_kernel_batch": machine.get("step_kernel_batch"),
        "perplexity": ppl.get("perplexity"),
        "perplexity_standard_error": ppl.get("standard_error"),
        "perplexity_ratio": against.get("perplexity_ratio"),
        "agreement": against.get("top1"),
        "rounds": row["rounds"],
        "flags": " ".join(row["flags"]),
        "error": error and f"{error['kind']}: {error['message']}",
        "command": row["command"],
    }
    metrics = row["metrics"]
    if metrics is None:
        yield {**line, "output_tokens": row["config"]["output_tokens"]}
        return
    line |= {name: metrics[name] for name in _METRICS}
    line |= {f"memory_{name}_bytes": metrics["memory_bytes"][name] for name in _MEMORY}
    for length in metrics["lengths"]:
        yield {**line, **{name: length[name] for name in _LENGTH}}
