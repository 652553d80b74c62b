"""Element types of source tensors and of files, and exact conversions between them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flexq_ft.errors import WeightError

__all__ = [
    "BF16",
    "ITEM_BYTES",
    "NUMPY_DTYPES",
    "Array",
    "FloatArray",
    "as_float32",
    "cast_checked",
]

Array = NDArray[Any]
FloatArray = NDArray[np.float32]

BF16 = np.dtype(ml_dtypes.bfloat16)
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "fp16": np.dtype("<f2"),
    "bf16": BF16,
    "fp32": np.dtype("<f4"),
    "int8": np.dtype("i1"),
}
ITEM_BYTES = {name: dtype.itemsize for name, dtype in NUMPY_DTYPES.items()}
_FP16_MAX = 65504.0


def as_float32(values: Array) -> FloatArray:
    """values (fp32, fp16 or bf16) as fp32, exactly; the array itself when it is fp32 already."""
    if values.dtype == np.float32:
        return values
    if values.dtype == BF16:
        # bf16 is the upper half of an fp32: a shift is much faster than a cast per element.
        wide = values.view(np.uint16).astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    return values.astype(np.float32)


def cast_checked(values: Array, dtype: str, *, tensor: str, first_row: int = 0) -> Array:
    """values in a file's float type, rounded once; WeightError for what cannot be stored.

    first_row: row of `tensor` that values[0] is, for the message.
    """
    wide = as_float32(values)
    limit = _FP16_MAX if dtype == "fp16" else float(np.finfo(np.float32).max)
    if not _within(wide, limit):
        raise_fault(wide, limit, tensor=tensor, first_row=first_row, dtype=dtype)
    target = NUMPY_DTYPES[dtype]
    if values.dtype == target:
        return values
    rounded = wide.astype(target)
    if dtype == "bf16" and not _within(as_float32(rounded), limit):
        raise_fault(as_float32(rounded), limit, tensor=tensor, first_row=first_row, dtype=dtype)
    return rounded


def _within(wide: FloatArray, limit: float) -> bool:
    """True when no value is NaN or larger than limit (max and min both pass NaN on)."""
    return wide.size == 0 or bool(wide.max() <= limit and wide.min() >= -limit)


def raise_fault(wide: FloatArray, limit: float, *, tensor: str, first_row: int, dtype: str) -> None:
    """WeightError that names the tensor and its first index past limit, if there is one."""
    bad = ~(np.abs(wide) <= limit)
    if not bad.any():
        return
    index = [int(i) for i in np.argwhere(bad)[0]]
    value = float(wide[tuple(index)])
    index[0] += first_row
    if np.isfinite(value):
        message = f"{tensor}{index} is {value:g}, beyond {dtype}'s largest value {limit:g}"
        hint = "--dtype bf16 or --dtype fp32"
    else:
        message = f"{tensor}{index} is {value}: weights must be finite"
        hint = "check the source checkpoint"
    raise WeightError(message, hint=hint, tensor=tensor, index=index)
