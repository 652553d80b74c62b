"""W6Ax products in NumPy: exact integers, then fp32 in the documented order, or float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.reference.quantization import GROUP, grouped


def group_sums(a_codes: NDArray[np.int8], w_codes: NDArray[np.int8]) -> NDArray[np.int32]:
    """a_codes [m, groups * 128], w_codes [n, k] -> exact sums [m, n, groups]."""
    a = grouped(a_codes, GROUP).astype(np.float64).transpose(1, 0, 2)
    w = grouped(w_codes, GROUP).astype(np.float64).transpose(1, 2, 0)
    return (a @ w).transpose(1, 2, 0).astype(np.int32)  # below 2^53, so float64 is exact


def w6ax(
    sums: NDArray[np.int32],
    a_scales: NDArray[np.float32],
    w_scales: NDArray[np.float16],
    bias: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """sums [m, n, groups], a_scales [m, groups], w_scales [n, groups] -> y [m, n], all in fp32."""
    y = np.zeros(sums.shape[:2], np.float32)
    for g in range(sums.shape[2]):
        scale = w_scales[None, :, g].astype(np.float32) * a_scales[:, g, None]
        y = y + scale * sums[:, :, g].astype(np.float32)
    return y if bias is None else y + bias


def w6ax_float64(
    sums: NDArray[np.int32], a_scales: NDArray[np.float32], w_scales: NDArray[np.float16]
) -> NDArray[np.float64]:
    y: NDArray[np.float64] = np.einsum(
        "mng,ng,mg->mn", sums.astype(float), w_scales.astype(float), a_scales.astype(float)
    )
    return y


def w6a16_float64(
    x: NDArray[Any], w_codes: NDArray[np.int8], w_scales: NDArray[np.float16]
) -> NDArray[np.float64]:
    """x [m, k], w_codes [n, k], w_scales [n, groups] -> y [m, n]."""
    k = w_codes.shape[1]
    scales = np.repeat(w_scales.astype(float), GROUP, axis=1)[:, :k]
    y: NDArray[np.float64] = x.astype(float) @ (w_codes * scales).T
    return y
