"""One small GEMM per scheme against NumPy: does the arithmetic of this build hold on this machine?

NumPy multiplies the same integer codes with their scales in double precision; what is left is
the rounding of fp32 sums. On a GPU: the product alone, against the CPU's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
_M, _N, _K, _GROUP = 5, 48, 192, 128  # a partial tile and a partial group
_LIMIT = 1e-5  # of the largest output
_GPU_LIMIT = 1e-4  # tensor cores sum in fp32 with fewer guard bits, in another order


def self_test(scheme: str) -> float:
    """The largest error as a share of the largest output. Raises AssertionError above the limit."""
    random = np.random.default_rng(7)
    x = random.standard_normal((_M, _K)).astype(np.float32)
    w = random.standard_normal((_N, _K)).astype(np.float32)
    got, expected = _TESTS[scheme](x, w)
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    if not error <= _LIMIT:  # NaN fails too
        raise AssertionError(f"off by {error:.2e} of the largest value; at most {_LIMIT:.0e}")
    return error


def _float(dtype: str) -> Callable[[Any, Any], tuple[Any, Float]]:
    def run(x: NDArray[np.float32], w: NDArray[np.float32]) -> tuple[Any, Float]:
        import ml_dtypes

        from flexq_ft._native import ops

        kinds = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
        xt, wt = x.astype(kinds[dtype]), w.astype(kinds[dtype])
        panel = ops.pack_panel([wt], dtype=dtype)
        got = ops.gemm_float(xt, panel, n=_N, k=_K, dtype=dtype)
        return got, xt.astype(np.float64) @ wt.astype(np.float64).T

    return run


def _w8a16(x: NDArray[np.float32], w: NDArray[np.float32]) -> tuple[Any, Float]:
    from flexq_ft._native import kernels, ops

    codes, scales = kernels.quantize_weight_int8(w)
    panel = ops.pack_panel([codes], dtype="int8")
    got = ops.gemm_w8a16(x, panel, n=_N, k=_K, scale=scales)
    return got, x.astype(np.float64) @ (codes * scales[:, None].astype(np.float64)).T


def _w8a8(x: NDArray[np.float32], w: NDArray[np.float32]) -> tuple[Any, Float]:
    from flexq_ft._native import kernels, ops

    codes, scales = kernels.quantize_weight_int8(w)
    act, act_scales = kernels.quantize_weight_int8(x)  # per row: per token
    got = ops.gemm_w8a8(act, act_scales, ops.pack_panel_pairs([codes]), n=_N, k=_K, scale=scales)
    sums = act.astype(np.float64) @ codes.astype(np.float64).T
    return got, sums * act_scales[:, None].astype(np.float64) * scales.astype(np.float64)


def _w6ax(x: NDArray[np.float32], w: NDArray[np.float32]) -> tuple[Any, Float]:
    from flexq_ft._native import kernels

    codes, scales = kernels.quantize_weight_int6(w)
    act, act_scales = kernels.quantize_activations(x, act_bits=6)
    by_group = np.ascontiguousarray(scales.T)  # [groups, n]
    got = kernels.gemm_w6ax(act, act_scales, kernels.pack_int6(codes), by_group, _N, _K)
    weights = codes * np.repeat(scales.astype(np.float64), _GROUP, axis=1)[:, :_K]
    inputs = act * np.repeat(act_scales.astype(np.float64), _GROUP, axis=1)
    return got, inputs[:, :_K] @ weights.T


_TESTS: dict[str, Callable[[Any, Any], tuple[Any, Float]]] = {
    "fp32": _float("fp32"),
    "fp16": _float("fp16"),
    "bf16": _float("bf16"),
    "w8a16": _w8a16,
    "w8a8": _w8a8,
    "w6ax": _w6ax,
}

# The GPU's product, and what the CPU twin gives.
GpuCase = tuple[Callable[[], Any], Any]


def gpu_self_test(scheme: str) -> float:
    """As self_test, of the first GPU's product against the CPU twin's; w8a8's must be equal.

    Scales of w8a16 and w8a8 are left out: on a GPU they belong to the op that reads the product.
    """
    from flexq_ft import _native

    random = np.random.default_rng(7)
    x = random.standard_normal((_M, _K)).astype(np.float32)
    w = random.standard_normal((_N, _K)).astype(np.float32)
    product, expected = _GPU_CASES[scheme](x, w)
    ops: Any = _native.ops
    ops.use_device("cuda")
    try:
        got = product()
    finally:
        ops.use_device("cpu")
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    error = float(difference.max() / np.abs(expected).max())
    limit = 0.0 if scheme == "w8a8" else _GPU_LIMIT
    if not error <= limit:
        raise AssertionError(f"off by {error:.2e} of the largest value; at most {limit:.0e}")
    return error


def _gpu_float(dtype: str) -> Callable[[Any, Any], GpuCase]:
    def make(x: NDArray[np.float32], w: NDArray[np.float32]) -> GpuCase:
        import ml_dtypes

        from flexq_ft._native import ops

        kind = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}[dtype]
        xt, wt = x.astype(kind), w.astype(kind)
        panel = ops.pack_panel([wt], dtype=dtype)
        expected = ops.gemm_float(xt, panel, n=_N, k=_K, dtype=dtype)
        return lambda: ops.gpu_gemm(xt, wt, scheme="fp16"), expected

    return make


def _gpu_w8a16(x: NDArray[np.float32], w: NDArray[np.float32]) -> GpuCase:
    from flexq_ft._native import kernels, ops

    codes, _ = kernels.quantize_weight_int8(w)
    xt = x.astype(np.float16)
    panel = ops.pack_panel([codes], dtype="int8")
    ones = np.ones(_N, np.float32)
    expected = ops.gemm_w8a16(xt, panel, n=_N, k=_K, scale=ones)
    return lambda: ops.gpu_gemm(xt, codes, scheme="w8a16"), expected


def _gpu_w8a8(x: NDArray[np.float32], w: NDArray[np.float32]) -> GpuCase:
    from flexq_ft._native import kernels, ops

    codes, _ = kernels.quantize_weight_int8(w)
    act, _ = kernels.quantize_weight_int8(x)
    panel = ops.pack_panel_pairs([codes])
    ones, scale = np.ones(_M, np.float32), np.ones(_N, np.float32)
    expected = ops.gemm_w8a8(act, ones, panel, n=_N, k=_K, scale=scale)
    return lambda: ops.gpu_gemm(act, codes, scheme="w8a8"), expected


# Activation bits and tokens: kernels for few and for many, and those for float activations.
_W6AX_CASES = ((6, _M), (8, 20 * _M), (16, _M))


def _gpu_w6ax(x: NDArray[np.float32], w: NDArray[np.float32]) -> GpuCase:
    from flexq_ft._native import kernels, ops

    codes, scales = kernels.quantize_weight_int6(w)
    packed, by_group = kernels.pack_int6(codes), np.ascontiguousarray(scales.T)
    inputs = [np.resize(x, (tokens, _K)).astype(np.float16) for _, tokens in _W6AX_CASES]
    expected = []
    for (bits, _), xt in zip(_W6AX_CASES, inputs, strict=True):
        if bits == 16:
            expected.append(kernels.gemm_w6a16(xt, packed, by_group, _N, _K))
        else:
            act, act_scales = kernels.quantize_activations(xt, act_bits=bits)
            expected.append(kernels.gemm_w6ax(act, act_scales, packed, by_group, _N, _K))

    def product() -> Any:
        return np.concatenate(
            [
                ops.gpu_w6ax(xt, packed, by_group, _N, act_bits=bits)
                for (bits, _), xt in zip(_W6AX_CASES, inputs, strict=True)
            ]
        )

    return product, np.concatenate(expected)


_GPU_CASES: dict[str, Callable[[Any, Any], GpuCase]] = {
    "fp16": _gpu_float("fp16"),
    "bf16": _gpu_float("bf16"),
    "w8a16": _gpu_w8a16,
    "w8a8": _gpu_w8a8,
    "w6ax": _gpu_w6ax,
}
