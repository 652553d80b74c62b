"""The runtime's products of six-bit weights on a GPU, against the CPU's and NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft._native import kernels, ops
from tests.reference import gemm, quantization
from tests.reference import ops as reference

pytestmark = pytest.mark.skipif(not _native.gpus(), reason="no GPU, or a build without CUDA")

SHAPES = [(16, 128), (40, 200), (129, 576), (256, 1), (1040, 1037)]  # n, k
TOKENS = [1, 5, 16, 33, 64, 65, 200]


@pytest.fixture(autouse=True)
def cuda() -> Iterator[None]:
    ops.use_device("cuda")
    yield
    ops.use_device("cpu")


class Weight:
    def __init__(self, rng: np.random.Generator, n: int, k: int) -> None:
        self.codes, self.scales = quantization.weight_int6(
            rng.standard_normal((n, k)).astype(np.float32)
        )
        self.packed = kernels.pack_int6(self.codes)
        self.on_disk = np.ascontiguousarray(self.scales.T)

    def product(self, x: np.ndarray, act_bits: int, **options: Any) -> np.ndarray:
        n = len(self.codes)
        return ops.gpu_w6ax(x, self.packed, self.on_disk, n, act_bits=act_bits, **options)

    def expected(self, x: np.ndarray, act_bits: int) -> np.ndarray:
        """In float64."""
        if act_bits == 16:
            return gemm.w6a16_float64(x, self.codes, self.scales)
        codes, scales = quantization.activations(x, act_bits=act_bits)
        return gemm.w6ax_float64(gemm.group_sums(codes, self.codes), scales, self.scales)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("act_bits", [6, 8, 16])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_product_is_numpys(rng, dtype, act_bits, n, k):
    weight = Weight(rng, n, k)
    bias = rng.standard_normal(n).astype(np.float32)
    for m in TOKENS:
        x = rng.standard_normal((m, k)).astype(reference.DTYPES[dtype])
        want = weight.expected(x, act_bits)
        got = weight.product(x, act_bits)
        assert got.dtype == np.float32
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), m
        biased = weight.product(x, act_bits, bias=bias)
        np.testing.assert_array_equal(biased, got + bias)
        rounded = weight.product(x, act_bits, bias=bias, rounded=True)
        np.testing.assert_array_equal(rounded, biased.astype(x.dtype))


@pytest.mark.parametrize("act_bits", [6, 16])
def test_no_tokens_give_no_rows(rng, act_bits):
    assert Weight(rng, 40, 200).product(np.zeros((0, 200), np.float16), act_bits).shape == (0, 40)


def test_a_row_of_float_activations_has_its_bits_in_every_batch(rng):
    weight = Weight(rng, 129, 576)
    x = rng.standard_normal((200, 576)).astype(np.float16)
    whole = weight.product(x, 16)
    for first, last in ((0, 1), (63, 66), (128, 200), (7, 8)):
        np.testing.assert_array_equal(weight.product(x[first:last], 16), whole[first:last])


def test_a_row_of_codes_has_its_bits_in_every_batch_of_one_kernel(rng):
    weight = Weight(rng, 1040, 576)
    x = rng.standard_normal((300, 576)).astype(np.float16)
    families: dict[str, np.ndarray] = {}
    for m in (1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 100, 300):
        words = ops.gpu_w6ax_choice(m=m, n=1040, k=576, act_bits=6).split()
        # Blocks that share k sum their parts: as many blocks, the same bits.
        shares = [word for word in words if word.startswith("cluster=")] * ("sliced" in words)
        family = " ".join([words[0], *shares])
        rows = weight.product(x[:m], 6)
        np.testing.assert_array_equal(rows[:1], families.setdefault(family, rows[:1]))
        np.testing.assert_array_equal(weight.product(x[:m], 6), rows)


def test_a_token_that_is_not_finite_is_a_row_of_nan(rng):
    weight = Weight(rng, 40, 200)
    for m in (3, 70):
        x = rng.standard_normal((m, 200)).astype(np.float16)
        x[1, 199] = np.inf
        rows = np.isnan(weight.product(x, 8))
        assert rows[1].all() and not rows[[0, *range(2, m)]].any()


def test_a_choice_names_the_kernel_and_why(rng):
    assert ops.gpu_w6ax_choice(m=1, n=4096, k=4096, act_bits=6).startswith("stream kernel=")
    assert ops.gpu_w6ax_choice(m=2048, n=4096, k=4096, act_bits=8).endswith(
        ("(table)", "(default)")
    )
    assert ops.gpu_w6ax_choice(m=500, n=4096, k=4096, act_bits=16).startswith("weight-only kernel=")
