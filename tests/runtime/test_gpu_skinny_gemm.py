"""The products of few tokens on a GPU against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft._native import ops
from tests.reference import ops as reference

KINDS = [("fp16", "fp16"), ("fp16", "bf16"), ("w8a16", "fp16"), ("w8a16", "bf16"), ("w8a8", "int8")]
SHAPES = [
    (1, 16),
    (7, 48),
    (576, 1536),
    (256, 256),
    (96, 576),
    (768, 64),
    (200, 11008),
    (4104, 768),
]  # n, k
TOKENS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64]

needs_gpu = pytest.mark.skipif(not _native.gpus(), reason="no GPU")


@pytest.fixture
def cuda():
    ops.use_device("cuda")
    yield
    ops.use_device("cpu")


def activations(rng, dtype, m, k):
    if dtype == "int8":
        return rng.integers(-127, 128, (m, k)).astype(np.int8)
    return rng.standard_normal((m, k)).astype(reference.DTYPES[dtype])


def weight(rng, scheme, dtype, n, k):
    if scheme == "fp16":
        return rng.standard_normal((n, k)).astype(reference.DTYPES[dtype])
    return rng.integers(-127, 128, (n, k)).astype(np.int8)


def assert_product(got, x, w, scheme):
    if scheme == "w8a8":
        np.testing.assert_array_equal(got, x.astype(np.int64) @ w.astype(np.int64).T)
    else:
        want = x.astype(np.float64) @ w.astype(np.float64).T
        reference.assert_close(got, want, dtype="fp32")


@needs_gpu
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize(("scheme", "dtype"), KINDS)
def test_default_config_matches(cuda, rng, scheme, dtype, n, k):
    w = weight(rng, scheme, dtype, n, k)
    for m in TOKENS:
        x = activations(rng, dtype, m, k)
        assert_product(ops.skinny_gemm(x, w, scheme=scheme), x, w, scheme)


@needs_gpu
@pytest.mark.parametrize(("scheme", "dtype"), KINDS)
def test_every_config_matches_and_repeats(cuda, rng, scheme, dtype):
    n, k = 328, 2064  # no multiple of a tile, of a chunk or of what a block reads at once
    w = weight(rng, scheme, dtype, n, k)
    for m in (1, 8, 11, 16, 20, 32, 50, 64):
        x = activations(rng, dtype, m, k)
        of_warps = {}
        for config in ops.skinny_configs(scheme=scheme, dtype=dtype, m=m, n=n, k=k):
            got = ops.skinny_gemm(x, w, scheme=scheme, config=config)
            assert_product(got, x, w, scheme)
            again = ops.skinny_gemm(x, w, scheme=scheme, config=config)
            np.testing.assert_array_equal(got, again)
            # Rows and stages do not decide the order of a sum.
            np.testing.assert_array_equal(got, of_warps.setdefault(config[1], got))


@needs_gpu
@pytest.mark.parametrize(("n", "k"), [(576, 1536), (4096, 4096), (300, 11008)])
@pytest.mark.parametrize(("scheme", "dtype"), KINDS)
def test_row_of_a_batch_has_the_bits_of_the_row_alone(cuda, rng, scheme, dtype, n, k):
    w = weight(rng, scheme, dtype, n, k)
    x = activations(rng, dtype, 64, k)
    whole = ops.skinny_gemm(x, w, scheme=scheme)
    for first, m in [(0, 1), (63, 1), (5, 8), (3, 13), (20, 16), (30, 17), (31, 33)]:
        part = ops.skinny_gemm(x[first : first + m].copy(), w, scheme=scheme)
        np.testing.assert_array_equal(part, whole[first : first + m])


@needs_gpu
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_every_code_of_w8a16_is_exact(cuda, dtype):
    codes = np.arange(-128, 128, dtype=np.int8)
    w = np.zeros((256, 256), np.int8)
    np.fill_diagonal(w, codes)
    ones = np.ones((1, 256), reference.DTYPES[dtype])
    got = ops.skinny_gemm(ones, w, scheme="w8a16")
    np.testing.assert_array_equal(got[0], codes.astype(np.float32))


@needs_gpu
def test_w8a8_extremes_do_not_overflow(cuda):
    x = np.full((2, 65536), -128, np.int8)
    got = ops.skinny_gemm(x, x[:1].copy(), scheme="w8a8")
    np.testing.assert_array_equal(got, np.full((2, 1), 65536 * 128 * 128))


@needs_gpu
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_nan_of_one_token_stays_in_its_row(cuda, rng, dtype):
    w = weight(rng, "fp16", dtype, 64, 272)
    x = activations(rng, dtype, 9, 272)
    x[4, 100] = np.nan
    x[5, 271] = np.inf
    got = ops.skinny_gemm(x, w, scheme="fp16")
    assert np.isnan(got[4]).all()
    assert not np.isfinite(got[5]).any()
    assert np.isfinite(np.delete(got, [4, 5], axis=0)).all()


def test_configs_and_default_agree():
    for scheme, dtype in KINDS:
        for m in TOKENS:
            problem = {"scheme": scheme, "dtype": dtype, "m": m, "n": 4096, "k": 4096}
            assert ops.skinny_default(**problem, multiprocessors=132) in ops.skinny_configs(
                **problem
            )
    assert ops.skinny_configs(scheme="fp16", dtype="fp16", m=65, n=4096, k=4096) == []
