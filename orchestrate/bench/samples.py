"""What repeated measurements say: percentiles, spread, an interval. Never one mean alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

STEADY_CV = 0.02

# Two-sided 95 % points of Student's t for n - 1 = 1 … 29 degrees of freedom; 1.96 beyond.
_T95 = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13,
    2.12, 2.11, 2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05,
)  # fmt: skip


def variation(values: Sequence[float]) -> float | None:
    """Coefficient of variation: stdev / mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    return statistics.stdev(values) / mean if mean > 0 else math.inf


def percentile(values: Sequence[float], share: float) -> float:
    """Between the two nearest values, linearly."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def interval95(values: Sequence[float]) -> float | None:
    """Half the width of the mean's 95 % confidence interval; None for fewer than two values."""
    if len(values) < 2:
        return None
    t = _T95[len(values) - 2] if len(values) <= len(_T95) + 1 else 1.96
    return t * statistics.stdev(values) / math.sqrt(len(values))


def summary(values: Sequence[float]) -> dict[str, Any] | None:
    """The numbers of a row; None without values. interval95: half the width, about the mean.

    p99 only of a hundred values or more: of fewer it is the maximum by another name.
    """
    if not values:
        return None
    return {
        "n": len(values),
        "p50": statistics.median(values),
        "p90": percentile(values, 0.9),
        "p99": percentile(values, 0.99) if len(values) >= 100 else None,
        "mean": statistics.fmean(values),
        "min": min(values),
        "max": max(values),
        "stdev": statistics.stdev(values) if len(values) > 1 else None,
        "cv": variation(values),
        "interval95": interval95(values),
    }
