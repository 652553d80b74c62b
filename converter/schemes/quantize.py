"""The native quantisers on a block of a tensor, with faults named by the tensor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flexq_ft.converter.dtypes import Array, FloatArray, raise_fault
from flexq_ft.errors import WeightError

__all__ = ["quantize_block"]

_Quantizer = Callable[[FloatArray], tuple[Array, Array]]


def quantize_block(
    quantizer: _Quantizer, block: FloatArray, *, tensor: str, first_row: int, first_column: int = 0
) -> tuple[Array, Array]:
    """(codes, scales) of a block [N, K] that starts at (first_row, first_column) of tensor."""
    try:
        return quantizer(np.ascontiguousarray(block))
    except WeightError as error:
        limit = float(np.finfo(np.float32).max)
        raise_fault(block, limit, tensor=tensor, first_row=first_row, dtype="fp32")
        raise WeightError(
            f"{tensor}, rows from {first_row}, columns from {first_column}: {error.message}",
            cause=error.cause,
            hint=error.hint or "check the source checkpoint",
        ) from error
