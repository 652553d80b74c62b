"""Quality of quantised weights: what rounding cost, tensor by tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from flexq_ft.converter.dtypes import Array, FloatArray

__all__ = ["REPORT_SCHEMA", "Quality", "QualityMeter", "quality_report"]

REPORT_SCHEMA = "flexq-ft/quant-report/1"


@dataclass(frozen=True, kw_only=True)
class Quality:
    """sqnr_db: signal to quantisation noise of the weights, in dB (None where nothing was lost).

    saturated_share: share of codes at the end of their range (|code| >= 31, or 127 of int8); about
    one in a group of 128 is, because the largest value sets the scale.
    """

    tensor: str
    linear: str
    elements: int
    sqnr_db: float | None
    max_abs_error: float
    saturated_share: float

    def to_json(self) -> dict[str, Any]:
        return {
            "tensor": self.tensor,
            "linear": self.linear,
            "elements": self.elements,
            "sqnr_db": self.sqnr_db,
            "max_abs_error": self.max_abs_error,
            "saturated_share": self.saturated_share,
        }


class QualityMeter:
    """Sums over row blocks; the order of blocks is fixed, so results repeat bit for bit."""

    def __init__(self, *, largest_code: int) -> None:
        self._largest = largest_code
        self._signal = 0.0
        self._noise = 0.0
        self._max_error = 0.0
        self._saturated = 0
        self._elements = 0

    def add(self, weights: FloatArray, codes: Array, scales: FloatArray, group: int) -> None:
        """weights, codes [N, K]; scales [N, groups] fp32, each for `group` k."""
        rows, columns = weights.shape
        error = codes.astype(np.float32)
        if columns % group == 0:
            grouped = error.reshape(rows, -1, group)
            grouped *= scales[:, :, None]
        else:
            error *= np.repeat(scales, group, axis=1)[:, :columns]
        np.subtract(weights, error, out=error)
        self._signal += float(np.einsum("ij,ij->i", weights, weights).sum(dtype=np.float64))
        self._noise += float(np.einsum("ij,ij->i", error, error).sum(dtype=np.float64))
        self._max_error = max(self._max_error, float(error.max()), -float(error.min()))
        at_end = np.count_nonzero(codes >= self._largest)
        at_end += np.count_nonzero(codes <= -self._largest)
        self._saturated += int(at_end)
        self._elements += weights.size

    def result(self, *, tensor: str, linear: str) -> Quality:
        sqnr = None
        if self._noise > 0 and self._signal > 0:
            sqnr = round(10 * math.log10(self._signal / self._noise), 2)
        return Quality(
            tensor=tensor,
            linear=linear,
            elements=self._elements,
            sqnr_db=sqnr,
            max_abs_error=float(f"{self._max_error:.4g}"),
            saturated_share=round(self._saturated / max(self._elements, 1), 6),
        )


def quality_report(rows: list[Quality], *, scheme: str) -> dict[str, Any]:
    """quant_report.json. Rows in the order of the model."""
    return {
        "schema": REPORT_SCHEMA,
        "scheme": scheme,
        "tensors": [row.to_json() for row in rows],
    }
