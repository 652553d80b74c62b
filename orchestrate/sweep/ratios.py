"""Scheme against scheme: how many times a baseline's latency and memory are a scheme's own."""

from __future__ import annotations

from collections.abc import Sequence

from flexq_ft.orchestrate.sweep.points import Point, by_setting

BASELINES = ("fp16", "w8a8")
TITLES = (
    "model", "tp", "batch", "tokens", "scheme", "latency ms", *(f"x {name}" for name in BASELINES),
    "peak MB", *(f"x {name}" for name in BASELINES),
)  # fmt: skip
MEANING = (
    "x: the baseline's latency (first prompt token handed over to last token received), or peak "
    "memory, over the scheme's own, both measured in this sweep; above 1 the scheme is the faster, "
    "or the smaller. Peak memory is of the longest output of a request."
)


def ratio_cells(points: Sequence[Point]) -> list[list[str]]:
    """A line of TITLES for each point that stands beside a baseline; none without any."""
    lines = []
    for group in by_setting(points):
        baselines = {p.precision: p for p in group if p.precision in BASELINES}
        if baselines and len(group) > 1:
            lines += [_cells(point, baselines) for point in group]
    return lines


def _cells(point: Point, baselines: dict[str, Point]) -> list[str]:
    cells = [point.model, str(point.tp), str(point.batch)]
    cells += [f"{point.prompt_tokens}+{point.output_tokens}", point.precision]
    for name, scale in (("latency_ms", 1.0), ("peak_memory_bytes", 1e-6)):
        own = getattr(point, name)
        cells.append(f"{own * scale:,.0f}")
        cells += [
            f"{getattr(baselines[other], name) / own:.3f}" if other in baselines else "-"
            for other in BASELINES
        ]
    return cells
