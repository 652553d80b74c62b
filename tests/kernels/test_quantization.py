"""Quantisers against NumPy, bit for bit: rounding, ties, subnormals, NaN and infinity."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from flexq_ft import kernels
from flexq_ft.errors import ConfigError, WeightError
from tests.reference import quantization as reference

SHAPES = [(1, 1), (1, 64), (3, 128), (7, 192), (2, 576), (5, 1000), (2, 4096)]
FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]


def assert_same_bits(got: NDArray[Any], expected: NDArray[Any]) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes(), np.argwhere(got != expected)[:5]


def check_activations(x: NDArray[Any], act_bits: int, group: int = 128) -> None:
    codes, scales = kernels.quantize_activations(x, act_bits=act_bits, group=group)
    expected_codes, expected_scales = reference.activations(x, act_bits=act_bits, group=group)
    assert_same_bits(codes, expected_codes)
    assert_same_bits(scales, expected_scales)


def check_weight(w: NDArray[np.float32]) -> None:
    codes, scales = kernels.quantize_weight_int6(w)
    expected_codes, expected_scales = reference.weight_int6(w)
    assert_same_bits(codes, expected_codes)
    assert_same_bits(scales, expected_scales)


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_weight_int6(n: int, k: int, isa: str, rng: np.random.Generator) -> None:
    check_weight(rng.standard_normal((n, k)).astype(np.float32))


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-6, 3.1e-4, 1.0, 1e6, 2.0e6])
def test_weights_of_any_size(size: float, isa: str, rng: np.random.Generator) -> None:
    """Below 31 * 1e-5 the scale is fp16(1e-5), a subnormal; 65504 * 31 is just below 2.031e6."""
    check_weight((rng.uniform(-1, 1, (4, 300)) * size).astype(np.float32))


def test_weight_scale_may_be_the_greatest_fp16(isa: str) -> None:
    w = np.full((1, 2), 31 * 65504, np.float32)
    codes, scales = kernels.quantize_weight_int6(w)
    assert scales[0, 0] == 65504
    assert codes.tolist() == [[31, 31]]


def test_the_rounded_scale_divides_not_the_exact_one(isa: str) -> None:
    """fp16 rounds 1.0006 up to 1.00098, which moves 2.5016 from just above a tie to below it."""
    w = np.array([[31 * 1.0006, 2.5001 * 1.0006]], np.float32)
    codes, scales = kernels.quantize_weight_int6(w)
    assert scales[0, 0] == np.float16(1.00098)
    assert codes.tolist() == [[31, 2]]
    check_weight(w)


def test_weight_ties_go_to_even(isa: str) -> None:
    w = np.concatenate([np.arange(-31, 31) + 0.5, [31.0, -31.0]]).astype(np.float32)[None]
    codes, scales = kernels.quantize_weight_int6(w)
    assert scales[0, 0] == 1
    assert codes[0, :4].tolist() == [-30, -30, -28, -28]
    check_weight(w)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65504 * 31 * 1.001])
def test_a_weight_that_cannot_be_quantised_is_named(value: float, isa: str) -> None:
    w = np.ones((40, 300), np.float32)
    w[17, 290] = value
    w[17, 299] = np.nan
    w[30, 3] = np.inf
    with pytest.raises(WeightError, match="row 17, column 290"):
        kernels.quantize_weight_int6(w)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_int8_weight_fault(value: float, isa: str) -> None:
    w = np.ones((40, 300), np.float32)
    w[0, 0] = np.finfo(np.float32).max
    w[17, 290] = value
    with pytest.raises(WeightError, match="row 17, column 290"):
        kernels.quantize_weight_int8(w)


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_weight_int8(n: int, k: int, isa: str, rng: np.random.Generator) -> None:
    w = rng.standard_normal((n, k)).astype(np.float32)
    w[n // 2] = 0
    codes, scales = kernels.quantize_weight_int8(w)
    expected_codes, expected_scales = reference.weight_int8(w)
    assert_same_bits(codes, expected_codes)
    assert_same_bits(scales, expected_scales)
    assert scales[n // 2] == 1


def test_int8_row_below_the_smallest_scale_is_zero(isa: str) -> None:
    codes, scales = kernels.quantize_weight_int8(np.array([[1e-45, 0, -1e-45]], np.float32))
    assert scales.tolist() == [1.0]
    assert codes.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("act_bits", [6, 8])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "k"), SHAPES)
def test_activations(
    m: int, k: int, dtype: Any, act_bits: int, isa: str, rng: np.random.Generator
) -> None:
    x = (rng.standard_normal((m, k)) * rng.lognormal(0, 2, (m, 1))).astype(dtype)
    check_activations(x, act_bits)
    check_activations(x, act_bits, group=k)


@pytest.mark.parametrize("act_bits", [6, 8])
def test_activations_near_the_zero_rule(act_bits: int, isa: str) -> None:
    """a < 2^-100 is a zero group; 2^-100 itself is not, and its scale is a normal number."""
    least = np.float32(2.0**-100)
    x = np.zeros((7, 130), np.float32)
    x[:, 5] = [0, 1e-45, 1e-38, np.nextafter(least, np.float32(0)), least, least * 3, 6e4]
    x[:, 129] = -x[:, 5]
    _, scales = kernels.quantize_activations(x, act_bits=act_bits)
    assert (scales[:4] == 0).all()
    assert (scales[4:] >= np.finfo(np.float32).tiny).all()
    check_activations(x, act_bits)


@pytest.mark.parametrize("act_bits", [6, 8])
def test_activation_ties_go_to_even(act_bits: int, isa: str) -> None:
    q = {6: 31, 8: 127}[act_bits]
    values = np.arange(-q, q) + 0.5
    x = np.concatenate([values, [q, -q]]).astype(np.float32)[None]
    codes, scales = kernels.quantize_activations(x, act_bits=act_bits, group=x.shape[1])
    assert scales[0, 0] == 1
    assert codes[0, : values.size].tolist() == np.rint(values).astype(int).tolist()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_marks_its_group_only(
    value: float, dtype: Any, isa: str
) -> None:
    for column in (0, 77, 127, 299):
        x = np.ones((3, 300), np.float32)
        x[1, column] = value
        codes, scales = kernels.quantize_activations(x.astype(dtype), act_bits=8)
        group = column // 128
        assert np.isnan(scales[1, group])
        assert not codes[1, 128 * group : 128 * group + 128].any()
        assert np.isfinite(scales).sum() == 8
        check_activations(x.astype(dtype), 8)


def test_every_fp16_and_bf16_value_is_read_as_itself(isa: str) -> None:
    bits = np.arange(2**16, dtype=np.uint16).reshape(-1, 1)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        check_activations(bits.view(dtype), 8)


def test_fp16_scale_rounds_like_numpy_everywhere(isa: str) -> None:
    """One weight per group: its scale runs over all fp16 values and the ties between them."""
    halves = np.arange(1, 0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float32)
    for factor in (1.0, 1 + 2.0**-11, 1 - 2.0**-11, 1 + 3 * 2.0**-11):
        w = halves * np.float32(factor) * np.float32(31)
        check_weight(w[w / np.float32(31) <= 65504].reshape(-1, 1))


def test_strided_input_and_no_rows() -> None:
    x = np.arange(600, dtype=np.float32).reshape(20, 30)
    got = kernels.quantize_activations(x[::2, ::3], act_bits=6)
    expected = kernels.quantize_activations(x[::2, ::3].copy(), act_bits=6)
    assert_same_bits(got[0], expected[0])
    codes, scales = kernels.quantize_activations(x[:0], act_bits=6)
    assert codes.shape == (0, 128)
    assert scales.shape == (0, 1)


finite = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 300)),
    elements=st.floats(-65000, 65000, width=32),
)


@settings(deadline=None, max_examples=60)
@given(w=finite)
def test_weights_of_any_shape_and_value(w: NDArray[np.float32]) -> None:
    check_weight(w)
    codes, scales = kernels.quantize_weight_int6(w)
    steps = np.repeat(scales.astype(np.float32), 128, axis=1)[:, : w.shape[1]]
    assert (np.abs(w - codes * steps) <= steps * 0.52 + np.abs(w) * 2.0**-9).all()


@settings(deadline=None, max_examples=60)
@given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 300)),
        elements=st.floats(width=32),
    ),
    act_bits=st.sampled_from([6, 8]),
    group=st.sampled_from([1, 16, 100, 128, 300]),
)
def test_activations_of_any_bits(x: NDArray[np.float32], act_bits: int, group: int) -> None:
    check_activations(x, act_bits, group)


def test_wrong_arguments_name_the_numbers() -> None:
    x = np.ones((2, 128), np.float32)
    with pytest.raises(ConfigError, match=r"activations \[2, 128\] to 7 bits"):
        kernels.quantize_activations(x, act_bits=7)
    with pytest.raises(ConfigError, match="group 0"):
        kernels.quantize_activations(x, act_bits=8, group=0)
    with pytest.raises(ConfigError, match="x is float64"):
        kernels.quantize_activations(x.astype(np.float64), act_bits=8)
    with pytest.raises(ConfigError, match="w is float16"):
        kernels.quantize_weight_int6(x.astype(np.float16))
    with pytest.raises(ConfigError, match=r"w has shape \[256\], expected \[\*, \*\]"):
        kernels.quantize_weight_int8(x.reshape(-1))
