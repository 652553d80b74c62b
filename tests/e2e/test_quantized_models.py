"""W8A16, W8A8 and W6Ax as whole models: replay against NumPy, and the perplexity rule against a
fake-quantised Hugging Face model (docs/numerics.md, section 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from tests.e2e.conftest import Model, compare
from tests.reference import fake_quant
from tests.reference import quantization as oracle
from tests.reference.divergence import LARGE, TINY_FP32, Divergence
from tests.tools.linears import layer_weights

SCHEMES = ("w8a16", "w8a8", "w6ax")


def act_bits(scheme: str, linear: str) -> int:
    if scheme == "w6ax":
        return 8 if linear in ("down", "fc2") else 6
    return {"w8a8": 8, "w8a16": 16}[scheme]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_replay_integers_are_numpys_and_products_within_the_limit(
    model: Model, scheme: str
) -> None:
    engine = model.engine(scheme)
    weights = layer_weights(model.reference)
    records = [r for r in engine.trace(model.text[:24]) if r["name"] != "lm_head"]
    assert {r["name"] for r in records} == set(weights)
    for record in records:
        w, bias = weights[record["name"]]
        x = record["x"]
        bits = act_bits(scheme, record["name"].split(".")[-1])
        y = replay(scheme, x, *quantized(scheme, w), bias, bits)
        limit = 1e-5 * max(float(np.abs(y).max()), 1e-6)
        assert float(np.abs(record["y"] - y).max()) <= limit, record["name"]
        np.testing.assert_array_equal(engine.run_linear(record["name"], x), record["y"])


def quantized(scheme: str, w: Any) -> tuple[Any, Any]:
    """w -> codes [n, k], scales [n, groups], after asserting that the kernels' are the same."""
    if scheme == "w6ax":
        codes, scales = oracle.weight_int6(w)
        ours = _native.kernels.quantize_weight_int6(w)
    else:
        codes, scales = oracle.weight_int8(w)
        ours = _native.kernels.quantize_weight_int8(w)
    np.testing.assert_array_equal(ours[0], codes)
    np.testing.assert_array_equal(ours[1], scales)
    return codes, scales.reshape(len(scales), -1)


def replay(scheme: str, x: Any, codes: Any, scales: Any, bias: Any, bits: int) -> Any:
    """The linear in NumPy, after asserting that the kernels' activation integers are the same."""
    group = 128 if scheme == "w6ax" else x.shape[1]
    if bits == 16:
        a_codes, a_scales = x.astype(np.float64), np.ones((x.shape[0], scales.shape[1]))
    else:
        a_codes, a_scales = oracle.activations(x, act_bits=bits, group=group)
        ours = _native.kernels.quantize_activations(x, act_bits=bits, group=group)
        np.testing.assert_array_equal(ours[0], a_codes)
        np.testing.assert_array_equal(ours[1], a_scales)
    a = oracle.grouped(a_codes.astype(np.float64), group)
    w = oracle.grouped(codes.astype(np.float64), group)
    y = np.zeros((x.shape[0], codes.shape[0]))
    for g in range(a.shape[1]):  # float64 holds the integer sums exactly
        y += scales[:, g].astype(float) * a_scales[:, g, None] * (a[:, g] @ w[:, g].T)
    return y if bias is None else y + bias


@pytest.mark.parametrize("scheme", SCHEMES)
def test_perplexity_rule_against_fake_quantized_transformers(
    model: Model, scheme: str, measured: Callable[[str], None]
) -> None:
    if not model.trained:
        pytest.skip("random weights have no perplexity to keep; replay covers them")
    hf = model.hf()
    fake_quant.quantize_model(hf, scheme, fake_quant.FLEXQ)
    engine = model.engine(scheme)
    length = min(2048 if model.is_large else 512, model.positions)
    divergence = Divergence()
    for ids in model.windows(length, -(-30_000 // length)):
        compare(divergence, model, engine, hf, ids)
    measured(f"{model.name} {scheme}: {divergence}")
    (LARGE if model.is_large else TINY_FP32).check(divergence)


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "bf16", *SCHEMES])
def test_a_repeated_run_gives_the_same_bits(model: Model, scheme: str) -> None:
    ids = model.text[:64]
    dtype = scheme if scheme in ("fp16", "bf16") else "fp32"
    first, second = model.engine(scheme, dtype=dtype), model.engine(scheme, dtype=dtype)
    logits = first.forward(ids)
    np.testing.assert_array_equal(first.forward(ids), logits)
    np.testing.assert_array_equal(second.forward(ids), logits)


@pytest.mark.parametrize("scheme", ["w8a8", "w6ax"])
def test_every_instruction_set_gives_the_same_integers(model: Model, scheme: str) -> None:
    """Logits of a quantised model change with the last bit of a float sum; its codes must not."""
    engine = model.engine(scheme)
    record = next(r for r in engine.trace(model.text[:8]) if r["name"].endswith("qkv"))
    active = _native.kernels.active_isa()
    try:
        for isa in _native.kernels.isas():
            _native.kernels.set_isa(isa)
            y = engine.run_linear(record["name"], record["x"])
            np.testing.assert_allclose(y, record["y"], atol=1e-5 * np.abs(record["y"]).max())
    finally:
        _native.kernels.set_isa(active)
