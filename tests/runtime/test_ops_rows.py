"""Norms, residual, activations and embedding against NumPy, at sizes that leave partial vectors."""

from __future__ import annotations

import numpy as np
import pytest

from flexq_ft import _native, errors
from flexq_ft._native import ops
from tests.reference import ops as reference

DTYPES = list(reference.DTYPES)
HIDDEN = [1, 7, 16, 129, 576]
TOKENS = [0, 1, 7]


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    return x.astype(reference.DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("tokens", TOKENS)
def test_rms_norm_matches(backend, rng, dtype, hidden, tokens):
    x = cast(rng.standard_normal((tokens, hidden)) * 3, dtype)
    weight = cast(rng.standard_normal(hidden), dtype)
    got = ops.rms_norm(x, weight, 1e-5)
    assert got.dtype == x.dtype
    reference.assert_close(got, reference.rms_norm(x, weight, 1e-5), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [7, 16, 129, 576])
@pytest.mark.parametrize("tokens", TOKENS)
def test_layer_norm_matches_with_a_large_mean(backend, rng, dtype, hidden, tokens):
    x = cast(rng.standard_normal((tokens, hidden)) + 20, dtype)
    weight, bias = (cast(rng.standard_normal(hidden), dtype) for _ in range(2))
    got = ops.layer_norm(x, weight, bias, 1e-5)
    want = reference.layer_norm(x, weight, bias, 1e-5)
    reference.assert_close(got, want, dtype=dtype)


# On a GPU: a row in one register vector a thread, in two, and in shared memory; all of them, and
# the last value of a partial vector, on a block's last warp.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [4096, 4097, 5120, 11008, 16384, 28672])
@pytest.mark.parametrize("layer", [False, True])
def test_norm_of_long_rows_matches(backend, rng, dtype, hidden, layer):
    x = cast(rng.standard_normal((3, hidden)) * [[1e-3], [1], [30]], dtype)
    weight, bias = (cast(rng.standard_normal(hidden), dtype) for _ in range(2))
    if layer:
        got = ops.layer_norm(x, weight, bias, 1e-5)
        want = reference.layer_norm(x, weight, bias, 1e-5)
    else:
        got = ops.rms_norm(x, weight, 1e-5)
        want = reference.rms_norm(x, weight, 1e-5)
    reference.assert_close(got, want, dtype=dtype)


@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_norm_of_what_is_not_finite_is_nan_there_and_leaves_other_rows(backend, rng, layer, value):
    x = rng.standard_normal((3, 129)).astype(np.float32)
    weight, bias = (rng.standard_normal(129).astype(np.float32) for _ in range(2))

    def norm() -> np.ndarray:
        return ops.layer_norm(x, weight, bias, 1e-5) if layer else ops.rms_norm(x, weight, 1e-5)

    clean = norm()
    x[1, 128] = value
    got = norm()
    assert np.isnan(got[1, 128])
    # RMSNorm of an infinity: every other value of the row is divided by it.
    assert np.isnan(got[1]).all() or (not layer and np.isinf(value) and not got[1, :128].any())
    np.testing.assert_array_equal(got[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("with_bias", [False, True])
def test_residual_is_rounded_once(backend, rng, dtype, hidden, with_bias):
    x = cast(rng.standard_normal((7, hidden)), dtype)
    y = rng.standard_normal((7, hidden)).astype(np.float32)
    bias = rng.standard_normal(hidden).astype(np.float32) if with_bias else None
    added = y if bias is None else y + bias
    want = cast(x.astype(np.float32) + added, dtype)
    ops.add_residual(x, y, bias)
    np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["silu", "relu", "gelu"])
@pytest.mark.parametrize("inter", HIDDEN)
@pytest.mark.parametrize("gated", [False, True])
def test_activation_matches(backend, rng, dtype, name, inter, gated):
    x = (rng.standard_normal((7, inter * (2 if gated else 1))) * 4).astype(np.float32)
    want = reference.activation(x[:, :inter], name)
    if gated:
        want = want * x[:, inter:]
    reference.assert_close(ops.activation(x, name, dtype=dtype, gated=gated), want, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inter", [1032, 4097, 11008])
def test_activation_of_long_rows_matches(backend, rng, dtype, inter):
    x = rng.standard_normal((3, 2 * inter)).astype(np.float32)
    want = reference.activation(x[:, :inter], "silu") * x[:, inter:]
    reference.assert_close(ops.activation(x, "silu", dtype=dtype, gated=True), want, dtype=dtype)


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_activation_is_accurate_value_by_value(backend, name):
    x = np.linspace(-80, 80, 160 * 101, dtype=np.float32)[None]
    want = reference.activation(x, name)
    got = ops.activation(x, name, dtype="fp32", gated=False).astype(np.float64)
    big = np.abs(want) > 1e-30
    relative = np.abs(got - want)[big] / np.abs(want)[big]
    # The exponent of gelu is itself rounded: its error grows with x.
    limit = 1e-6 if name == "silu" else 2e-5
    assert relative.max() <= limit
    assert np.abs(got[~big]).max() <= 1e-28


@pytest.mark.parametrize("name", ["silu", "relu", "gelu"])
def test_activation_keeps_nan_and_infinity(backend, name):
    x = np.array([[np.nan, np.inf, 1.0]], np.float32)
    got = ops.activation(x, name, dtype="fp32", gated=False)[0]
    assert np.isnan(got[0])
    assert got[1] == np.inf
    assert np.isfinite(got[2])
    # Not NaN: a value that overflowed upstream must not look like one that was never computed.
    low = ops.activation(np.array([[-np.inf]], np.float32), name, dtype="fp32", gated=False)[0, 0]
    assert low == (0 if name == "relu" else -np.inf)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("learned", [False, True])
def test_embedding_matches(backend, rng, dtype, tokens, learned):
    table = cast(rng.standard_normal((31, 129)), dtype)
    wpe = cast(rng.standard_normal((11, 129)), dtype)
    ids = rng.integers(0, 31, tokens).astype(np.int32)
    positions = rng.integers(0, 11, tokens).astype(np.int32)
    want = table[ids]
    if learned:
        want = cast(want.astype(np.float32) + wpe[positions].astype(np.float32), dtype)
        got = ops.embedding(ids, table, positions, wpe)
    else:
        got = ops.embedding(ids, table)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 8, 129, 4104])
def test_embedding_of_any_width_copies_bits(backend, rng, dtype, hidden):
    table = cast(rng.standard_normal((5, hidden)), dtype)
    table[2, 0] = np.nan
    ids = np.array([4, 2, 0, 2], np.int32)
    got = ops.embedding(ids, table)
    assert got.tobytes() == table[ids].tobytes()


@pytest.mark.skipif(not _native.gpus(), reason="the CPU refuses the id; no GPU here")
@pytest.mark.parametrize("bad", [-1, 31, 2**31 - 1])
def test_embedding_outside_the_tables_is_zeros_on_a_gpu(bad):
    table, wpe = np.ones((31, 12), np.float32), np.ones((7, 12), np.float32)
    good = np.zeros(2, np.int32)
    ids = np.array([1, bad], np.int32)
    ops.use_device("cuda")
    try:
        for got in (
            ops.embedding(ids, table),
            ops.embedding(ids, table, good, wpe),
            ops.embedding(good, table, ids, wpe),
        ):
            assert got[0].all()
            assert not got[1].any()
    finally:
        ops.use_device("cpu")


@pytest.mark.parametrize("bad", [-1, 31])
def test_embedding_id_out_of_the_table_is_refused(bad):
    table = np.zeros((31, 4), np.float32)
    with pytest.raises(errors.InternalError, match=rf"{bad}.*id of token 1"):
        ops.embedding(np.array([0, bad], np.int32), table)


def test_shapes_that_disagree_are_named_with_both_values():
    x, weight = np.zeros((2, 8), np.float32), np.zeros(7, np.float32)
    with pytest.raises(errors.InternalError, match=r"\[7\] vs \[8\]"):
        ops.rms_norm(x, weight, 1e-5)
    with pytest.raises(errors.InternalError, match=r"\[2, 7\] vs \[2, 8\]"):
        ops.add_residual(x, np.zeros((2, 7), np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_others_or_on_threads(backend, rng, dtype):
    x = cast(rng.standard_normal((129, 576)), dtype)
    weight, bias = (cast(rng.standard_normal(576), dtype) for _ in range(2))
    for norm in (
        lambda rows: ops.rms_norm(rows, weight, 1e-6),
        lambda rows: ops.layer_norm(rows, weight, bias, 1e-6),
        lambda rows: ops.activation(rows.astype(np.float32), "gelu", dtype=dtype, gated=True),
    ):
        whole = norm(x)
        alone = np.concatenate([norm(x[i : i + 1]) for i in range(129)])
        np.testing.assert_array_equal(whole, alone)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_stores_round_half_to_even_at_the_edges_of_the_type(backend, rng, dtype):
    bits = rng.integers(0, 2**32, 4096, dtype=np.uint32)
    ties = (np.arange(65536, dtype=np.uint32) << 16) | 0x8000  # halfway between two bf16
    half = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    halfway = (half[:-1] + half[1:]) / 2  # exact in fp32
    edges = np.array([65504, 65519.996, 65520, 3.4e38, np.inf, -np.inf, np.nan, 2**-25, 0])
    y = np.concatenate(
        [bits.view(np.float32), ties.view(np.float32), halfway, -halfway, edges.astype(np.float32)]
    )[None]
    x = np.zeros(y.shape, reference.DTYPES[dtype])
    ops.add_residual(x, y)
    with np.errstate(over="ignore", invalid="ignore"):
        want = y.astype(reference.DTYPES[dtype])
    np.testing.assert_array_equal(x.astype(np.float32), want.astype(np.float32))
