"""The quantisers in NumPy: single IEEE operations in fp32, in the order of docs/numerics.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP = 128
F32 = np.float32


def grouped(x: NDArray[Any], group: int) -> NDArray[Any]:
    """[rows, k] -> [rows, groups, group], the last group padded with zeros."""
    rows, k = x.shape
    groups = -(-k // group)
    padded = np.zeros((rows, groups * group), x.dtype)
    padded[:, :k] = x
    return padded.reshape(rows, groups, group)


def weight_int6(w: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """w [n, k], finite -> codes [n, k], scales [n, groups]."""
    n, k = w.shape
    g = grouped(w, GROUP)
    wanted = np.abs(g).max(-1) / F32(31)
    scales = np.maximum(wanted, F32(1e-5)).astype(np.float16)
    codes = np.clip(np.rint(g / scales.astype(F32)[..., None]), -32, 31)
    return codes.reshape(n, -1)[:, :k].astype(np.int8), scales


def weight_int8(w: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """w [n, k], finite -> codes [n, k], scales [n]."""
    scales = np.abs(w).max(-1) / F32(127)
    scales = np.where(scales == 0, F32(1), scales)
    codes = np.clip(np.rint(w / scales[:, None]), -127, 127)
    return codes.astype(np.int8), scales


def activations(
    x: NDArray[Any], *, act_bits: int, group: int = GROUP, static_scale: float = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """x [m, k] of any float dtype -> codes [m, groups * group], scales [m, groups].

    static_scale: of every finite group, instead of what its largest value asks for.
    """
    q = F32({6: 31, 8: 127}[act_bits])
    g = grouped(x.astype(F32), group)
    finite = np.isfinite(g).all(-1)
    a = np.abs(np.where(finite[..., None], g, F32(0))).max(-1)
    zero = a < F32(2.0**-100)
    safe = np.where(zero, F32(1), a)
    inverse = q / safe
    if static_scale:
        zero = np.zeros_like(zero)
        inverse = np.full_like(safe, F32(1) / F32(static_scale))
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = np.rint(g * inverse[..., None])
    codes = np.clip(rounded, -q - 1, q)
    codes = np.where((zero | ~finite)[..., None], F32(0), codes)
    scales = np.where(zero, F32(0), F32(static_scale) if static_scale else safe / q)
    scales = np.where(finite, scales, F32(np.nan))
    return codes.astype(np.int8).reshape(x.shape[0], -1), scales
