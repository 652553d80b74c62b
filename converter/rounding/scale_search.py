"""Scale search: for each group the scale that rounds with the least squared error.

The largest weight does not choose well: a slightly smaller scale cuts it off and serves the others
better. Tried are the scale of docs/numerics.md and some below it. With second moments of the input
channels, what is least is the error of the output as far as channels are uncorrelated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flexq_ft.converter.dtypes import Array, FloatArray
from flexq_ft.converter.rounding.rounder import CODES, SCALE_FACTORS, SMALLEST_SCALE, Rounder
from flexq_ft.converter.shards import Range

__all__ = ["ScaleSearch"]


class ScaleSearch(Rounder):
    """moments: mean x² of each input channel, [K]; None: all alike."""

    def __init__(self, moments: FloatArray | None = None) -> None:
        self._moments = moments

    def round(self, weights: FloatArray, groups: Sequence[Range]) -> tuple[Array, Array]:
        codes = np.empty(weights.shape, np.int8)
        scales = np.empty((len(weights), len(groups)), np.float16)
        for index, (begin, end) in enumerate(groups):
            moments = None if self._moments is None else self._moments[begin:end]
            best = _search(weights[:, begin:end], moments)
            codes[:, begin:end], scales[:, index] = best
        return codes, scales


def _search(group: FloatArray, moments: FloatArray | None) -> tuple[Array, Array]:
    """Codes [n, k] and scales [n] of one group; the larger scale where two are as good."""
    low, high = CODES
    largest = np.abs(group).max(1) / np.float32(high)
    least = np.full(len(group), np.inf, np.float32)
    codes = np.empty(group.shape, np.int8)
    scales = np.empty(len(group), np.float16)
    for factor in SCALE_FACTORS:
        tried = np.maximum(largest * np.float32(factor), SMALLEST_SCALE).astype(np.float16)
        wide = tried.astype(np.float32)[:, None]
        rounded = np.clip(np.rint(group / wide), low, high)
        error = np.square(group - rounded * wide)
        sums = error.sum(1) if moments is None else error @ moments
        better = sums < least
        least[better], scales[better] = sums[better], tried[better]
        codes[better] = rounded[better]
    return codes, scales
