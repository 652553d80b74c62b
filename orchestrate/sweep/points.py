"""Rows as points: one for each number of output tokens that was timed, for tables and plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexq_ft.orchestrate.models import Preparation
from flexq_ft.orchestrate.sweep.store import Row

# How a choice of the step kernel is shown; auto is not.
STEP_NAMES = {"on": "one kernel", "off": "op by op"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A row's numbers up to so many output tokens. setting: what two points must share to be
    compared, all but precision and form of the steps, output_tokens last. precision: as a table
    shows it, the form included. is_whole: the request has no more."""

    setting: tuple[Any, ...]
    model: str
    precision: str
    scheme: str | None
    is_op_by_op: bool  # decode steps are no single kernel
    tp: int
    batch: int
    prompt_tokens: int
    output_tokens: int
    latency_ms: float
    decode_tok_s: float | None
    bytes_per_step: float | None
    peak_memory_bytes: int
    is_whole: bool

    @property
    def context(self) -> int:
        """Tokens of a sequence at its end."""
        return self.prompt_tokens + self.output_tokens


def model_name(row: Row) -> str:
    """The file's or the shape's, short."""
    return Path(row["config"]["model"]).name.removesuffix(".ini")


def precision_name(row: Row) -> str:
    """As a table shows it: `w6ax (flexq)`, `w8a8, lm_head w8`, `w6ax (w6a8), rotated, gptq`."""
    config = row["config"]
    name = config["scheme"] or "as converted"
    policy, head = config["policy"], config.get("lm_head")
    parts = [name if policy is None else f"{name} ({Path(policy).name})"]
    parts += [] if head in (None, "fp16") else [f"lm_head {head}"]
    prepared = {name: config[name] for name in ("rotate", "smooth", "rounding") if name in config}
    parts += Preparation(**prepared).words()
    step = STEP_NAMES.get(config.get("step_kernel", "auto"))
    return ", ".join(parts if step is None else [*parts, step])


def points_of(rows: Iterable[Row]) -> list[Point]:
    """In the order of the rows, shorter outputs first; none of rows without numbers."""
    return [
        Point(
            setting=_setting(row, length["output_tokens"]),
            model=model_name(row),
            precision=precision_name(row),
            scheme=row["config"]["scheme"],
            is_op_by_op=_is_op_by_op(row),
            tp=row["config"]["tp"],
            batch=row["config"]["batch"],
            prompt_tokens=row["config"]["prompt_tokens"],
            output_tokens=length["output_tokens"],
            latency_ms=length["latency_ms"],
            decode_tok_s=length["decode_tok_s"],
            bytes_per_step=length["bytes_per_step"],
            peak_memory_bytes=row["metrics"]["peak_memory_bytes"],
            is_whole=length["output_tokens"] == row["config"]["output_tokens"],
        )
        for row in rows
        if row["metrics"] is not None
        for length in row["metrics"]["lengths"]
    ]


def _is_op_by_op(row: Row) -> bool:
    machine = row.get("machine") or {}
    return bool(row["config"]["batch"] > machine.get("step_kernel_batch", 0))


def _setting(row: Row, output_tokens: int) -> tuple[Any, ...]:
    config = row["config"]
    names = ("model", "synthetic_weights", "dtype", "lm_head", "tp", "batch", "prompt_tokens")
    # Memory is of the whole request, so a prefix is compared with prefixes of the same.
    return (*(config.get(name) for name in names), config["output_tokens"], output_tokens)


def by_setting(points: Sequence[Point]) -> list[list[Point]]:
    """Points that differ in precision and in the form of their steps alone, together."""
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(point.setting, []).append(point)
    return list(groups.values())
