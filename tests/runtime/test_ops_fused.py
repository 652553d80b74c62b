"""Ops fused with the scales of the product in front of them and the quantiser behind them.

Codes are compared bit for bit with the quantiser applied to the values that the op itself emits
(docs/numerics.md): its floats may differ by ulps between devices, its integers follow from them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flexq_ft._native import ops
from tests.reference import ops as reference
from tests.reference import quantization
from tests.runtime.test_ops_attention import Batch

DTYPES = list(reference.DTYPES)
F32 = np.float32
# k, group: one scale for a token, groups of 128 with a partial last one, odd ones, and rows that a
# GPU holds in one register vector a thread, in two, and in shared memory.
GROUPINGS = [
    (1, 1),
    (7, 7),
    (129, 129),
    (576, 576),
    (576, 128),
    (129, 128),
    (200, 24),
    (77, 5),
    (64, 100),
    (4096, 4096),
    (4096, 128),
    (4097, 4097),
    (11008, 11008),
    (11008, 128),
    (14500, 14500),
]


class Operand:
    """A product [tokens, n] with what is still to be applied, and its values in NumPy."""

    def __init__(self, rng: np.random.Generator, tokens: int, n: int, kind: str) -> None:
        self.y: np.ndarray = rng.standard_normal((tokens, n)).astype(F32)
        self.fields: dict[str, Any] = {}
        if kind == "int32":
            self.y = rng.integers(-30000, 30000, (tokens, n)).astype(np.int32)
            self.fields = {
                "act_scale": rng.uniform(1e-4, 1e-2, tokens).astype(F32),
                "weight_scale": rng.uniform(1e-3, 1e-2, n).astype(F32),
            }
        if kind == "w8a16":
            self.fields["weight_scale"] = rng.uniform(0.1, 2, n).astype(F32)
        if kind != "fp32":
            self.fields["bias"] = rng.standard_normal(n).astype(F32)
        one, zero = np.ones(1, F32), np.zeros(1, F32)
        scale = self.fields.get("weight_scale", one) * self.fields.get("act_scale", one)[:, None]
        self.values: np.ndarray = self.y.astype(F32) * scale + self.fields.get("bias", zero)

    def given(self, device: str) -> tuple[np.ndarray, dict[str, Any]]:
        """What an op of that device takes: the CPU's linears apply everything themselves."""
        return (self.values, {}) if device == "cpu" else (self.y, self.fields)


def expect_codes(
    made: tuple[Any, Any, Any], *, act_bits: int, group: int, static_scale: float = 0.0
) -> None:
    values, codes, scales = made
    want_codes, want_scales = quantization.activations(
        values, act_bits=act_bits, group=group, static_scale=static_scale
    )
    np.testing.assert_array_equal(codes, want_codes)
    assert np.ascontiguousarray(scales).tobytes() == want_scales.tobytes()


@pytest.mark.parametrize("kind", ["fp32", "int32", "w8a16"])
@pytest.mark.parametrize(("tokens", "n"), [(1, 1), (7, 7), (3, 1032), (129, 576), (2, 4097)])
def test_finish_product_rounds_each_step_once(device, rng, kind, tokens, n):
    product = Operand(rng, tokens, n, kind)
    got = ops.finish_product(product.y, **product.fields)
    assert got.tobytes() == product.values.tobytes()


def test_finish_product_of_huge_sums_and_scales(device):
    y = np.array([[2**31 - 1, -(2**31), 2**24 + 1, 0]], np.int32)
    scales = {"act_scale": np.array([1e-30], F32), "weight_scale": np.full(4, 1e-12, F32)}
    bias = np.array([0, 0, 0, -0.0], F32)
    with np.errstate(under="ignore"):
        want = y.astype(F32) * (scales["weight_scale"] * scales["act_scale"]) + bias
    assert ops.finish_product(y, **scales, bias=bias).tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act_bits", [6, 8])
@pytest.mark.parametrize(("k", "group"), [*GROUPINGS, (96, 8), (512, 256), (40, 16), (512, 512)])
def test_quantize_is_the_reference(device, rng, dtype, act_bits, k, group):
    x = (rng.standard_normal((9, k)) * np.exp2(rng.integers(-9, 9, (9, 1)))).astype(F32)
    x[1] = 0
    x[2, -1] = np.nan
    x[3, 0] = -np.inf
    x = x.astype(reference.DTYPES[dtype])
    codes, scales = ops.quantize(x, act_bits=act_bits, group=group)
    expect_codes((x, codes, scales), act_bits=act_bits, group=group)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_quantize_at_the_least_group_and_at_ties(device, dtype):
    least = 2.0**-100
    ties = np.arange(-127, 128) / 2  # a = 63.5: each is half a step of two
    x = np.zeros((4, 255))
    x[0, 0], x[1, 0] = least, least / 2
    x[2] = ties
    x[3, 0], x[3, 1] = 3e38, 1e38
    x = x.astype(reference.DTYPES[dtype])
    codes, scales = ops.quantize(x, act_bits=8, group=255)
    expect_codes((x, codes, scales), act_bits=8, group=255)
    assert scales[0, 0] > 0
    assert scales[1, 0] == 0


# Values that fit the scale, that are a little and that are absurdly too large for it, and no scale.
@pytest.mark.parametrize("static_scale", [0.5, 0.01, 1e-12, 2.0**-100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [7, 64, 129, 576, 4096, 4097, 14500])
def test_a_static_scale_is_every_tokens(device, rng, dtype, k, static_scale):
    static = {"act_bits": 8, "group": k, "static_scale": static_scale}
    x = (20 * rng.standard_normal((6, k))).astype(F32)
    x[1], x[2, -1], x[3, 0] = 0, np.nan, -np.inf
    x[4] = static_scale * (np.arange(k) % 300 - 150) / 2  # ties, and both ends
    x = x.astype(reference.DTYPES[dtype])
    codes, scales = ops.quantize(x, **static)
    expect_codes((x, codes, scales), **static)
    assert np.isnan(scales).ravel().tolist() == [False, False, True, True, False, False]
    residual, weight = x[4:].copy(), np.ones(k, x.dtype)
    made = ops.residual_norm(residual, None, weight=weight, eps=1e-5, **static)
    expect_codes(made, **static)
    product = Operand(rng, 3, 2 * k, "int32")
    y, fields = product.given(device)
    expect_codes(
        ops.fused_activation(y, "silu", dtype=dtype, gated=True, **fields, **static), **static
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "group"), GROUPINGS)
@pytest.mark.parametrize("kind", ["fp32", "int32"])
@pytest.mark.parametrize("layer", [False, True])
def test_residual_norm(device, rng, dtype, k, group, kind, layer):
    tokens = 3
    residual = rng.standard_normal((tokens, k)).astype(reference.DTYPES[dtype])
    weight, norm_bias = (rng.standard_normal(k).astype(reference.DTYPES[dtype]) for _ in range(2))
    product = Operand(rng, tokens, k, kind)
    want = (residual.astype(F32) + product.values).astype(residual.dtype)
    y, fields = product.given(device)
    made = ops.residual_norm(
        residual,
        y,
        **fields,
        weight=weight,
        norm_bias=norm_bias if layer else None,
        eps=1e-5,
        act_bits=6,
        group=group,
    )
    np.testing.assert_array_equal(residual, want)
    if layer:
        normed = reference.layer_norm(want, weight, norm_bias, 1e-5)
    else:
        normed = reference.rms_norm(want, weight, 1e-5)
    reference.assert_close(made[0], normed, dtype=dtype)
    expect_codes(made, act_bits=6, group=group)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_without_a_product_is_that_of_the_plain_op(device, rng, dtype):
    residual = rng.standard_normal((5, 576)).astype(reference.DTYPES[dtype])
    weight = rng.standard_normal(576).astype(reference.DTYPES[dtype])
    before = residual.copy()
    made = ops.residual_norm(residual, None, weight=weight, eps=1e-5, act_bits=8, group=576)
    np.testing.assert_array_equal(residual, before)
    np.testing.assert_array_equal(made[0], ops.rms_norm(residual, weight, 1e-5))
    expect_codes(made, act_bits=8, group=576)


def test_a_row_that_is_not_finite_has_a_nan_scale(device, rng):
    residual = rng.standard_normal((3, 640)).astype(np.float16)
    residual[1, 639] = np.inf
    weight = np.ones(640, np.float16)
    made = ops.residual_norm(residual, None, weight=weight, eps=1e-5, act_bits=8, group=640)
    expect_codes(made, act_bits=8, group=640)
    assert np.isnan(made[2]).ravel().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "group"), GROUPINGS)
@pytest.mark.parametrize("kind", ["fp32", "int32"])
@pytest.mark.parametrize(("name", "gated"), [("silu", True), ("gelu", False), ("relu", False)])
def test_fused_activation(device, rng, dtype, k, group, kind, name, gated):
    product = Operand(rng, 3, 2 * k if gated else k, kind)
    want = reference.activation(product.values[:, :k], name)
    if gated:
        want = want * product.values[:, k:]
    x, fields = product.given(device)
    made = ops.fused_activation(
        x, name, dtype=dtype, gated=gated, **fields, act_bits=8, group=group
    )
    reference.assert_close(made[0], want, dtype=dtype)
    expect_codes(made, act_bits=8, group=group)
    plain = ops.fused_activation(x, name, dtype=dtype, gated=gated, **fields)
    np.testing.assert_array_equal(plain[0], made[0])
    assert plain[1:] == (None, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 128), (2, 2, 14), (3, 1, 7)])
def test_rope_append_applies_scales_before_it_rounds(device, rng, dtype, heads, kv_heads, head_dim):
    sequences = [(3, 1), (14, 20), (0, 5)]
    product = Operand(rng, 26, (heads + 2 * kv_heads) * head_dim, "int32")
    table = ops.rope_table(head_dim=head_dim, positions=40) if head_dim % 2 == 0 else None
    results = []
    for x, fields in (product.given(device), (product.values, {})):
        batch = Batch(sequences, heads, kv_heads, head_dim, dtype, np.random.default_rng(1))
        q = ops.rope_append(
            x, **fields, heads=heads, k=batch.k, v=batch.v, rope=table, **batch.tensors
        )
        results.append((q.tobytes(), batch.k.tobytes(), batch.v.tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("group", [128, 576])
def test_a_row_does_not_depend_on_the_others(device, rng, group):
    residual = rng.standard_normal((33, 576)).astype(np.float16)
    weight = np.ones(576, np.float16)
    product = Operand(rng, 33, 576, "int32")
    x, fields = product.given(device)

    def run(rows: slice) -> tuple[Any, ...]:
        own = dict(fields)
        if "act_scale" in own:
            own["act_scale"] = own["act_scale"][rows].copy()
        return ops.residual_norm(
            residual[rows].copy(), x[rows].copy(), **own, weight=weight, eps=1e-5, act_bits=8,
            group=group,
        )  # fmt: skip

    whole = run(slice(0, 33))
    for t in (0, 7, 32):
        alone = run(slice(t, t + 1))
        for part, all_rows in zip(alone, whole, strict=True):
            np.testing.assert_array_equal(part, all_rows[t : t + 1])


def test_many_tokens(device, rng):
    x = rng.standard_normal((5000, 40)).astype(np.float16)
    codes, scales = ops.quantize(x, act_bits=8, group=40)
    expect_codes((x, codes, scales), act_bits=8, group=40)


@pytest.mark.parametrize("inter", [4104, 5121])
def test_activation_of_many_tokens_has_the_bits_of_few(device, rng, inter):
    """A GPU gives a token a smaller block where there are many."""
    x = rng.standard_normal((257, 2 * inter)).astype(F32)

    def run(rows: np.ndarray) -> tuple[Any, Any, Any]:
        return ops.fused_activation(rows, "silu", dtype="bf16", gated=True, act_bits=8, group=inter)

    whole = run(x)
    expect_codes(whole, act_bits=8, group=inter)
    for part, all_rows in zip(run(x[200:203].copy()), whole, strict=True):
        np.testing.assert_array_equal(part, all_rows[200:203])
