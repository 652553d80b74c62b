"""Rounder: which of the codes and scales that the w6ax format can hold stand for a weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from flexq_ft.converter.dtypes import Array, FloatArray
from flexq_ft.converter.shards import Range

__all__ = ["CODES", "SCALE_FACTORS", "SMALLEST_SCALE", "Rounder"]

CODES = (-32, 31)
SMALLEST_SCALE = np.float32(1e-5)
# Of the scale that the largest weight of a group asks for, tried in this order.
SCALE_FACTORS = tuple(round(1.0 - 0.01 * step, 2) for step in range(31))


class Rounder(ABC):
    """Better than the nearest code to the largest weight's scale; same format. Safe to use from
    several threads."""

    @abstractmethod
    def round(self, weights: FloatArray, groups: Sequence[Range]) -> tuple[Array, Array]:
        """Codes [n, K] int8 and scales [n, groups] fp16 of rows of a linear's weight [n, K].

        groups: of columns, in order, at most 128 each. Rows do not depend on one another. The
        weights are finite and their scales fit fp16.
        """
