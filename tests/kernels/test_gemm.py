"""W6Ax and W6A16 on packed weights: integers exact, rows independent, NaN never hidden."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from flexq_ft import kernels
from flexq_ft.errors import ConfigError
from tests.reference import gemm as reference
from tests.reference import quantization
from tests.reference.packing import pack_int6

TOKENS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 33]
OUTPUTS = [1, 15, 16, 17, 100, 576]
DEPTHS = [64, 128, 192, 576, 1000, 4096]


@dataclass(frozen=True)
class Problem:
    """One quantised linear and the oracle's view of it, for the largest number of tokens."""

    n: int
    k: int
    x: NDArray[np.float32]
    a_codes: NDArray[np.int8]
    a_scales: NDArray[np.float32]
    w_codes: NDArray[np.int8]
    w_scales: NDArray[np.float16]  # [n, groups]
    packed: NDArray[np.uint8]
    bias: NDArray[np.float32]
    sums: NDArray[np.int32]

    @property
    def disk_scales(self) -> NDArray[np.float16]:
        return np.ascontiguousarray(self.w_scales.T)

    def run(self, m: int, **options: Any) -> NDArray[np.float32]:
        return kernels.gemm_w6ax(
            self.a_codes[:m],
            self.a_scales[:m],
            self.packed,
            self.disk_scales,
            n=self.n,
            k=self.k,
            **options,
        )


@cache
def problem(n: int, k: int, act_bits: int, m: int = max(TOKENS)) -> Problem:
    rng = np.random.default_rng(n * 100003 + k * 13 + act_bits)
    x = (rng.standard_normal((m, k)) * rng.lognormal(0, 1, (m, 1))).astype(np.float32)
    w = rng.standard_normal((n, k)).astype(np.float32)
    w_codes, w_scales = quantization.weight_int6(w)
    a_codes, a_scales = quantization.activations(x, act_bits=act_bits)
    bias = rng.standard_normal(n).astype(np.float32)
    sums = reference.group_sums(a_codes, w_codes)
    packed = pack_int6(w_codes)
    return Problem(n, k, x, a_codes, a_scales, w_codes, w_scales, packed, bias, sums)


def assert_same_bits(got: NDArray[Any], expected: NDArray[Any]) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes(), np.argwhere(got != expected)[:5]


@pytest.mark.parametrize("act_bits", [6, 8])
@pytest.mark.parametrize("k", DEPTHS)
@pytest.mark.parametrize("n", OUTPUTS)
def test_integers_and_outputs(n: int, k: int, act_bits: int, isa: str) -> None:
    """Codes, bytes and group sums equal NumPy's; so does y, since its fp32 steps are fixed."""
    p = problem(n, k, act_bits)
    a_codes, a_scales = kernels.quantize_activations(p.x, act_bits=act_bits)
    assert_same_bits(a_codes, p.a_codes)
    assert_same_bits(a_scales, p.a_scales)
    assert_same_bits(kernels.pack_int6(p.w_codes), p.packed)
    exact = reference.w6ax_float64(p.sums, p.a_scales, p.w_scales)
    expected = reference.w6ax(p.sums, p.a_scales, p.w_scales, p.bias)
    for m in TOKENS:
        sums = kernels.group_sums(p.a_codes[:m], p.packed, n=n, k=k)
        assert_same_bits(sums, p.sums[:m])
        y = p.run(m)
        assert np.abs(y - exact[:m]).max() <= 1e-5 * np.abs(exact[:m]).max()
        assert_same_bits(p.run(m, bias=p.bias), expected[:m])


def test_a_row_does_not_depend_on_its_batch(isa: str) -> None:
    """More tokens than one chunk, so that every block size and both sides of an edge occur."""
    p = problem(100, 576, 8, 300)
    whole = p.run(300)
    assert_same_bits(whole, reference.w6ax(p.sums, p.a_scales, p.w_scales))
    for m in (127, 128, 129, 255):
        assert_same_bits(p.run(m), whole[:m])
    x = p.x.astype(np.float32)
    floats = kernels.gemm_w6a16(x, p.packed, p.disk_scales, n=100, k=576)
    for m in (1, 2, 3, 5, 8, 9, 129):
        got = kernels.gemm_w6a16(x[-m:], p.packed, p.disk_scales, n=100, k=576)
        assert_same_bits(got, floats[-m:])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_more_float_rows_than_are_widened_at_a_time(dtype: Any) -> None:
    p = problem(17, 192, 6)
    x = np.concatenate([p.x.astype(dtype)] * 63)  # 2079 rows; 1024 at a time
    x[1030, 191] = np.nan
    y = kernels.gemm_w6a16(x, p.packed, p.disk_scales, n=17, k=192, bias=p.bias)
    one = kernels.gemm_w6a16(p.x.astype(dtype), p.packed, p.disk_scales, n=17, k=192, bias=p.bias)
    assert np.isnan(y[1030]).all()
    y[1030] = one[1030 % len(one)]
    np.testing.assert_array_equal(y, np.concatenate([one] * 63))


def test_all_least_codes_reach_the_bound_without_saturating(isa: str) -> None:
    """-32 and 31 against -128 and 127: the largest sums of pairs and of a group, of either sign."""
    n, k, m = 33, 256, 9
    for weight in (-32, 31):
        for activation in (-128, 127):
            w_codes = np.full((n, k), weight, np.int8)
            a_codes = np.full((m, k), activation, np.int8)
            sums = kernels.group_sums(a_codes, pack_int6(w_codes), n=n, k=k)
            assert (sums == 128 * weight * activation).all()


def test_alternating_extremes(isa: str, rng: np.random.Generator) -> None:
    w_codes = rng.choice(np.array([-32, 31], np.int8), (50, 384))
    a_codes = rng.choice(np.array([-128, 127], np.int8), (11, 384))
    sums = kernels.group_sums(a_codes, pack_int6(w_codes), n=50, k=384)
    assert_same_bits(sums, reference.group_sums(a_codes, w_codes))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_nan(value: float, dtype: Any, isa: str) -> None:
    p = problem(17, 192, 8)
    x = p.x.astype(dtype)
    x[2, 150] = value
    a_codes, a_scales = kernels.quantize_activations(x, act_bits=8)
    y = kernels.gemm_w6ax(a_codes, a_scales, p.packed, p.disk_scales, n=17, k=192, bias=p.bias)
    assert np.isnan(y[2]).all()
    assert np.isfinite(np.delete(y, 2, axis=0)).all()


def test_zero_groups_and_tiny_activations_give_exact_zeros(isa: str) -> None:
    p = problem(17, 192, 8)
    x = np.zeros((3, 192), np.float32)
    x[1] = 1e-38
    x[2] = 2.0**-101
    a_codes, a_scales = kernels.quantize_activations(x, act_bits=8)
    y = kernels.gemm_w6ax(a_codes, a_scales, p.packed, p.disk_scales, n=17, k=192)
    assert not y.any()


def test_scales_at_both_ends_of_their_types(isa: str) -> None:
    """fp16(1e-5) is subnormal, 65504 the greatest; activations at 2^-100 and 6e4."""
    p = problem(17, 192, 8)
    w_scales = np.where(np.arange(17)[:, None] % 2, np.float16(1e-5), np.float16(65504))
    w_scales = np.repeat(w_scales, 2, axis=1)
    a_scales = np.repeat(np.array([2.0**-100 / 127, 6e4 / 127, 1e-38], np.float32)[:, None], 2, 1)
    y = kernels.gemm_w6ax(
        p.a_codes[:3], a_scales, p.packed, np.ascontiguousarray(w_scales.T), n=17, k=192
    )
    assert_same_bits(y, reference.w6ax(p.sums[:3], a_scales, w_scales))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("k", DEPTHS)
@pytest.mark.parametrize("n", [1, 17, 100])
def test_float_activations(n: int, k: int, dtype: Any, isa: str) -> None:
    p = problem(n, k, 8)
    x = p.x.astype(dtype)
    exact = reference.w6a16_float64(x, p.w_codes, p.w_scales)
    for m in (1, 3, 9, 33):
        y = kernels.gemm_w6a16(x[:m], p.packed, p.disk_scales, n=n, k=k)
        assert np.abs(y - exact[:m]).max() <= 1e-5 * np.abs(exact[:m]).max()
        biased = kernels.gemm_w6a16(x[:m], p.packed, p.disk_scales, n=n, k=k, bias=p.bias)
        assert_same_bits(biased, y + p.bias)


def test_no_tokens_is_no_output(isa: str) -> None:
    p = problem(17, 192, 8)
    assert p.run(0).shape == (0, 17)


def test_operands_that_do_not_fit_are_refused() -> None:
    p = problem(17, 192, 8)
    with pytest.raises(ConfigError, match=r"scales has shape \[17, 2\], expected \[2, 17\]"):
        kernels.gemm_w6ax(p.a_codes, p.a_scales, p.packed, p.w_scales, n=17, k=192)
    with pytest.raises(ConfigError, match=r"a_codes has shape \[33, 192\], expected \[\*, 256\]"):
        kernels.group_sums(p.a_codes[:, :192], p.packed, n=17, k=192)
    with pytest.raises(ConfigError, match=r"packed has shape \[6144\], expected \[3072\]"):
        kernels.gemm_w6a16(p.x, p.packed, p.disk_scales, n=16, k=192)
    with pytest.raises(ConfigError, match=r"x is int8, expected float32, float16 or bfloat16"):
        kernels.gemm_w6a16(p.a_codes, p.packed, p.disk_scales, n=17, k=192)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ConfigError, match='no instruction set "sse9"') as caught:
        kernels.set_isa("sse9")
    assert "portable" in caught.value.hint
