"""The frozen layout: every bit has its place, whatever way it is written or cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flexq_ft import kernels
from flexq_ft.errors import ConfigError
from tests.reference import packing as reference

Codes = NDArray[np.int8]


def random_codes(rng: np.random.Generator, n: int, k: int) -> Codes:
    return rng.integers(-32, 32, (n, k)).astype(np.int8)


def test_the_reference_uses_every_bit_of_a_tile_once() -> None:
    assert np.array_equal(np.sort(reference.ADDRESSES.reshape(-1)), np.arange(12288))


@pytest.mark.parametrize("k", [1, 64, 128, 192, 576, 1000])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 100])
def test_packed_bytes_are_those_of_the_drawing(n: int, k: int, rng: np.random.Generator) -> None:
    codes = random_codes(rng, n, k)
    packed = kernels.pack_int6(codes)
    assert packed.size == kernels.packed_bytes(n, k) == -(-n // 16) * -(-k // 128) * 1536
    assert np.array_equal(packed, reference.pack_int6(codes))
    assert np.array_equal(kernels.unpack_int6(packed, n=n, k=k), codes)
    assert np.array_equal(reference.unpack_int6(packed, n, k), codes)


def test_all_codes_in_every_slot() -> None:
    slots = np.arange(16 * 128).reshape(16, 128)
    for shift in range(64):
        codes = ((slots + shift) % 64 - 32).astype(np.int8)
        packed = kernels.pack_int6(codes)
        assert np.array_equal(packed, reference.pack_int6(codes)), f"shift {shift}"
        assert np.array_equal(kernels.unpack_int6(packed, n=16, k=128), codes), f"shift {shift}"


def test_each_bit_of_a_tile_belongs_to_one_bit_of_one_code() -> None:
    for row, k, bit in np.ndindex(16, 128, 6):
        if (row * 128 + k + bit) % 7:  # every seventh probe reaches all words, bytes and bits
            continue
        codes = np.zeros((16, 128), np.int8)
        codes[row, k] = np.int8((1 << bit) - 64 * (bit == 5))
        address = reference.ADDRESSES[row, k, bit]
        packed = kernels.pack_int6(codes)
        assert packed[address // 8] == 1 << (address % 8), (row, k, bit)
        assert np.count_nonzero(packed) == 1, (row, k, bit)


def test_any_bytes_survive_unpack_and_pack(rng: np.random.Generator) -> None:
    packed = rng.integers(0, 256, kernels.packed_bytes(48, 384)).astype(np.uint8)
    assert np.array_equal(kernels.pack_int6(kernels.unpack_int6(packed, n=48, k=384)), packed)


def test_a_shard_packed_is_a_slice_of_the_whole(rng: np.random.Generator) -> None:
    codes = random_codes(rng, 100, 1000)
    whole = kernels.pack_int6(codes).reshape(7, 8, 1536)
    rows = kernels.pack_int6(codes[32:80]).reshape(3, 8, 1536)
    assert np.array_equal(rows, whole[2:5])
    columns = kernels.pack_int6(codes[:, 384:]).reshape(7, 5, 1536)
    assert np.array_equal(columns, whole[:, 3:])


def test_padding_is_zero(rng: np.random.Generator) -> None:
    packed = kernels.pack_int6(random_codes(rng, 17, 130))
    padded = reference.unpack_int6(packed, 32, 256)
    assert not padded[17:].any()
    assert not padded[:, 130:].any()


def test_strided_codes_are_packed_as_they_read(rng: np.random.Generator) -> None:
    codes = random_codes(rng, 64, 256)
    assert np.array_equal(kernels.pack_int6(codes.T), reference.pack_int6(codes.T.copy()))


def test_no_rows_is_no_bytes() -> None:
    assert kernels.pack_int6(np.zeros((0, 128), np.int8)).size == 0
    assert kernels.unpack_int6(np.zeros(0, np.uint8), n=0, k=128).shape == (0, 128)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 70), k=st.integers(1, 400), seed=st.integers(0, 2**32 - 1))
def test_round_trip_of_any_shape(n: int, k: int, seed: int) -> None:
    codes = random_codes(np.random.default_rng(seed), n, k)
    packed = kernels.pack_int6(codes)
    assert np.array_equal(packed, reference.pack_int6(codes))
    assert np.array_equal(kernels.unpack_int6(packed, n=n, k=k), codes)


@pytest.mark.parametrize("code", [-33, 32, 127, -128])
def test_a_code_that_does_not_fit_is_refused(code: int) -> None:
    codes = np.zeros((3, 5), np.int8)
    codes[2, 4] = code
    with pytest.raises(ConfigError, match=r"codes \[3, 5\] outside -32"):
        kernels.pack_int6(codes)


def test_a_packed_buffer_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"packed has shape \[1536\], expected \[3072\]"):
        kernels.unpack_int6(np.zeros(1536, np.uint8), n=17, k=128)
    with pytest.raises(ConfigError, match="packed is int8"):
        kernels.unpack_int6(np.zeros(1536, np.int8), n=16, k=128)
    with pytest.raises(ConfigError, match=r"weight \[1, 2147483648\]"):
        kernels.packed_bytes(1, 2**31)
