"""Scheme against scheme: how many times a baseline's latency and memory are a scheme's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flexq_ft.orchestrate.sweep.points import Point, by_setting


@dataclass(frozen=True)
class Baseline:
    """Of the points that it takes, the best one."""

    title: str
    takes: Callable[[Point], bool]

    def best(self, points: Sequence[Point], cost: Callable[[Point], float]) -> Point | None:
        return min(filter(self.takes, points), key=cost, default=None)


_FP16 = Baseline("fp16", lambda p: p.scheme == "fp16")
_W8A8 = Baseline("w8a8", lambda p: p.scheme == "w8a8")
_W8A8_OP_BY_OP = Baseline("w8a8 op by op", lambda p: p.scheme == "w8a8" and p.is_op_by_op)
_8_BIT = Baseline("8 bit", lambda p: p.scheme in ("w8a16", "w8a8"))
_FASTER = (_FP16, _W8A8_OP_BY_OP, _8_BIT)
_SMALLER = (_FP16, _W8A8)

TITLES = (
    "model", "tp", "batch", "tokens", "scheme",
    "latency ms", *(f"x {one.title}" for one in _FASTER), "bytes x 8 bit",
    "peak MB", *(f"x {one.title}" for one in _SMALLER),
)  # fmt: skip
MEANING = (
    "x: the baseline's latency (first prompt token handed over to last token received), or peak "
    "memory, over the scheme's own, both measured in this sweep; above 1 the scheme is the faster, "
    "or the smaller. fp16: ours, the faster (or smaller) of its forms, decode steps as one kernel "
    "or op by op; w8a8 op by op: cuBLASLt or our own products, kernel per op; 8 bit: the fastest "
    "of w8a16 and w8a8 in any form; bytes x 8 bit: what a decode step of that one must read over "
    "the scheme's own, which bounds the ratio of long outputs. Peak memory is of the longest "
    "output of a request."
)


def ratio_cells(points: Sequence[Point]) -> list[list[str]]:
    """A line of TITLES for each point that stands beside a baseline; none without any."""
    lines = []
    for group in by_setting(points):
        if len(group) > 1 and any(_FP16.takes(p) or _8_BIT.takes(p) for p in group):
            lines += [_cells(point, group) for point in group]
    return lines


def _cells(point: Point, group: Sequence[Point]) -> list[str]:
    latency = [one.best(group, _latency) for one in _FASTER]
    memory = [one.best(group, _memory) for one in _SMALLER]
    return [
        point.model, str(point.tp), str(point.batch),
        f"{point.prompt_tokens}+{point.output_tokens}", point.precision,
        f"{point.latency_ms:,.0f}", *(_ratio(one, point, _latency) for one in latency),
        _ratio(latency[-1], point, lambda p: p.bytes_per_step),
        f"{1e-6 * point.peak_memory_bytes:,.0f}", *(_ratio(one, point, _memory) for one in memory),
    ]  # fmt: skip


def _ratio(baseline: Point | None, point: Point, cost: Callable[[Point], float | None]) -> str:
    of_baseline, own = None if baseline is None else cost(baseline), cost(point)
    return "-" if of_baseline is None or own is None else f"{of_baseline / own:.3f}"


def _latency(point: Point) -> float:
    return point.latency_ms


def _memory(point: Point) -> float:
    return point.peak_memory_bytes
