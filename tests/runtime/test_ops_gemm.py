"""The float, W8A16 and W8A8 products against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from flexq_ft import errors
from flexq_ft._native import ops
from tests.reference import ops as reference

DTYPES = list(reference.DTYPES)
SHAPES = [(1, 1), (7, 7), (16, 128), (129, 31), (100, 576), (576, 129)]  # n, k
TOKENS = [0, 1, 2, 5, 7, 11, 12, 13, 33]


def product(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    y = x.astype(np.float64) @ w.astype(np.float64).T
    return y if bias is None else y + bias


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_float_gemm_matches(isa, rng, dtype, n, k):
    w = rng.standard_normal((n, k)).astype(reference.DTYPES[dtype])
    bias = rng.standard_normal(n).astype(np.float32)
    panel = ops.pack_panel([w], dtype=dtype)
    for m in TOKENS:
        x = rng.standard_normal((m, k)).astype(reference.DTYPES[dtype])
        for b in (None, bias):
            got = ops.gemm_float(x, panel, n=n, k=k, dtype=dtype, bias=b)
            reference.assert_close(got, product(x, w, b), dtype="fp32")


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("w_dtype", DTYPES)
def test_float_gemm_of_mixed_types(isa, rng, x_dtype, w_dtype):
    x = rng.standard_normal((13, 100)).astype(reference.DTYPES[x_dtype])
    w = rng.standard_normal((17, 100)).astype(reference.DTYPES[w_dtype])
    panel = ops.pack_panel([w], dtype=w_dtype)
    got = ops.gemm_float(x, panel, n=17, k=100, dtype=w_dtype)
    reference.assert_close(got, product(x, w, None), dtype="fp32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_w8a16_matches(isa, rng, dtype, n, k):
    w = rng.integers(-127, 128, (n, k)).astype(np.int8)
    scale = rng.uniform(0.01, 0.1, n).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    panel = ops.pack_panel([w], dtype="int8")
    for m in TOKENS:
        x = rng.standard_normal((m, k)).astype(reference.DTYPES[dtype])
        got = ops.gemm_w8a16(x, panel, n=n, k=k, scale=scale, bias=bias)
        want = product(x, w * scale[:, None].astype(np.float64), bias)
        reference.assert_close(got, want, dtype="fp32")


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_w8a8_sums_are_exact(isa, rng, n, k):
    w = rng.integers(-128, 128, (n, k)).astype(np.int8)
    panel = ops.pack_panel_pairs([w])
    scale = rng.uniform(0.01, 0.1, n).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    for m in TOKENS:
        codes = rng.integers(-128, 128, (m, k)).astype(np.int8)
        act_scale = rng.uniform(0.01, 0.1, m).astype(np.float32)
        sums = (codes.astype(np.int64) @ w.astype(np.int64).T).astype(np.float32)
        want = (scale[None] * act_scale[:, None]) * sums + bias
        got = ops.gemm_w8a8(codes, act_scale, panel, n=n, k=k, scale=scale, bias=bias)
        np.testing.assert_array_equal(got, want)


def test_w8a8_extremes_do_not_overflow(isa):
    k = 65536
    codes = np.full((2, k), -128, np.int8)
    w = np.full((1, k), -128, np.int8)
    one = np.ones(1, np.float32)
    got = ops.gemm_w8a8(
        codes, np.ones(2, np.float32), ops.pack_panel_pairs([w]), n=1, k=k, scale=one
    )
    np.testing.assert_array_equal(got, np.full((2, 1), 2.0**30, np.float32))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8", "w8a8"])
def test_a_row_does_not_depend_on_m_or_on_threads(isa, rng, dtype):
    n, k, m = 100, 576, 37
    if dtype in ("int8", "w8a8"):
        w = rng.integers(-127, 128, (n, k)).astype(np.int8)
    else:
        w = rng.standard_normal((n, k)).astype(reference.DTYPES[dtype])
    x = rng.standard_normal((m, k)).astype(np.float32)
    codes = rng.integers(-127, 128, (m, k)).astype(np.int8)
    act_scale = rng.uniform(0.01, 0.1, m).astype(np.float32)
    scale = rng.uniform(0.01, 0.1, n).astype(np.float32)
    panel = ops.pack_panel_pairs([w]) if dtype == "w8a8" else ops.pack_panel([w], dtype=dtype)

    def run(rows: slice) -> np.ndarray:
        if dtype == "w8a8":
            return ops.gemm_w8a8(codes[rows], act_scale[rows], panel, n=n, k=k, scale=scale)
        if dtype == "int8":
            return ops.gemm_w8a16(x[rows], panel, n=n, k=k, scale=scale)
        return ops.gemm_float(x[rows], panel, n=n, k=k, dtype=dtype)

    results = []
    try:
        for threads in (1, 2, 3, 5):
            ops.set_threads(threads)
            results.append(run(slice(0, m)))
            for size in range(1, 14):
                np.testing.assert_array_equal(run(slice(3, 3 + size)), results[0][3 : 3 + size])
    finally:
        ops.set_threads(2)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("row_major_nk", [True, False])
def test_panels_of_parts_at_any_row(isa, rng, dtype, source, row_major_nk):
    k = 37
    parts = [rng.standard_normal((n, k)).astype(reference.DTYPES[source]) for n in (5, 16, 1, 43)]
    w = np.concatenate(parts)
    n = len(w)
    given = parts if row_major_nk else [np.ascontiguousarray(p.T) for p in parts]
    panel = ops.pack_panel(given, dtype=dtype, row_major_nk=row_major_nk)
    want = np.zeros((-(-n // 16) * 16, k), reference.DTYPES[dtype])
    want[:n] = w.astype(reference.DTYPES[dtype])
    got = panel.view(reference.DTYPES[dtype]).reshape(-1, k, 16)
    np.testing.assert_array_equal(got, want.reshape(-1, 16, k).transpose(0, 2, 1))


@pytest.mark.parametrize("k", [1, 36, 37])
@pytest.mark.parametrize("pairs", [True, False])
def test_int8_panels_of_parts_at_any_row(rng, k, pairs):
    parts = [rng.integers(-128, 128, (n, k)).astype(np.int8) for n in (5, 16, 1, 43)]
    w = np.concatenate(parts)
    padded = np.zeros((-(-len(w) // 16) * 16, k + k % 2), np.int8)
    padded[: len(w), :k] = w
    if pairs:
        got = ops.pack_panel_pairs(parts).view(np.int8).reshape(-1, (k + 1) // 2, 16, 2)
        want = padded.reshape(-1, 16, (k + 1) // 2, 2).transpose(0, 2, 1, 3)
    else:
        got = ops.pack_panel(parts, dtype="int8").view(np.int8).reshape(-1, k, 16)
        want = padded[:, :k].reshape(-1, 16, k).transpose(0, 2, 1)
    np.testing.assert_array_equal(got, want)


def test_k_that_disagrees_is_named_with_both_values():
    panel = ops.pack_panel([np.zeros((4, 5), np.float32)], dtype="fp32")
    with pytest.raises(errors.InternalError, match=r"6 vs 5"):
        ops.gemm_float(np.zeros((1, 6), np.float32), panel, n=4, k=5, dtype="fp32")


def test_w8a8_refuses_k_whose_sum_may_overflow():
    k = 65538
    panel = ops.pack_panel_pairs([np.zeros((1, k), np.int8)])
    one = np.ones(1, np.float32)
    with pytest.raises(errors.InternalError, match="65538 vs 65536"):
        ops.gemm_w8a8(np.zeros((1, k), np.int8), one, panel, n=1, k=k, scale=one)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_every_16_bit_value_is_read_exactly(isa, dtype):
    values = np.arange(65536, dtype=np.uint16).view(reference.DTYPES[dtype])
    panel = ops.pack_panel([values.reshape(-1, 1)], dtype=dtype)
    one = np.ones((1, 1), np.float32)
    got = ops.gemm_float(one, panel, n=65536, k=1, dtype=dtype)[0]
    np.testing.assert_array_equal(got, values.astype(np.float32))
