"""The ops that make weights, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from flexq_ft import errors
from flexq_ft._native import ops
from tests.reference import ops as reference

DTYPES = list(reference.DTYPES)
BLOCKS = [(1, 1), (1, 64), (33, 31), (64, 96), (257, 40)]  # rows of dst, columns


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_columns_of_a_file_become_rows(device, rng, source, to):
    for rows, columns in BLOCKS:
        n, k, row, column = rows + 5, columns + 9, 3, 7
        block = rng.standard_normal((columns, rows)).astype(reference.DTYPES[source])
        if source != "fp16":
            block[0, 0] = 65536.0  # infinite in fp16
        dst = rng.standard_normal((n, k)).astype(reference.DTYPES[to])
        want = dst.copy()
        with np.errstate(over="ignore"):
            values = block.astype(np.float32).astype(reference.DTYPES[to])
        want[row : row + rows, column : column + columns] = values.T
        ops.repack_rows(dst, block, row=row, column=column, row_major_nk=False)
        assert dst.tobytes() == want.tobytes()


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_rows_of_a_table_are_converted(device, rng, source, to):
    for rows, k in BLOCKS:
        block = rng.standard_normal((rows, k)).astype(reference.DTYPES[source])
        dst = rng.standard_normal((rows + 4, k)).astype(reference.DTYPES[to])
        want = dst.copy()
        want[2 : 2 + rows] = block.astype(np.float32).astype(reference.DTYPES[to])
        ops.repack_rows(dst, block, row=2)
        assert dst.tobytes() == want.tobytes()


def test_nan_stays_nan(device):
    block = np.full((3, 4), np.nan, np.float32)
    dst = np.zeros((4, 3), np.float16)
    ops.repack_rows(dst, block, row_major_nk=False)
    assert np.isnan(dst).all()


def test_int8_is_copied(device, rng):
    block = rng.integers(-127, 128, (40, 65)).astype(np.int8)
    dst = np.zeros((65, 40), np.int8)
    ops.repack_rows(dst, block, row_major_nk=False)
    assert (dst == block.T).all()


def test_blocks_that_do_not_fit_are_refused(device):
    dst = np.zeros((4, 8), np.float32)
    with pytest.raises(errors.InternalError):
        ops.repack_rows(dst, np.zeros((4, 7), np.float32))
    with pytest.raises(errors.InternalError):
        ops.repack_rows(dst, np.zeros((2, 8), np.float32), row=3)
    with pytest.raises(errors.InternalError):
        ops.repack_rows(dst, np.zeros((5, 2), np.float32), column=4, row_major_nk=False)
    with pytest.raises(errors.InternalError):
        ops.repack_rows(dst, np.zeros((4, 8), np.int8))


def random_bits(key: int, first: int, count: int) -> np.ndarray:
    index = np.arange(first, first + count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = np.uint64(key) + (index // np.uint64(4) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> (np.uint64(16) * (index % np.uint64(4)))) & np.uint64(0xFFFF)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [0, 3, 1026])
def test_random_floats(device, dtype, first):
    got = ops.random_fill(5001, dtype=dtype, key=77, center=0.25, spread=1.5, first=first)
    unit = (random_bits(77, first, 5001).astype(np.float32) - 32768) / np.float32(32768)
    want = (np.float32(0.25) + np.float32(1.5) * unit).astype(reference.DTYPES[dtype])
    assert got.tobytes() == want.tobytes()


def test_random_codes(device):
    got = ops.random_fill(200001, dtype="int8", key=5)
    want = ((random_bits(5, 0, 200001) * np.uint64(255)) >> np.uint64(16)).astype(np.int64) - 127
    assert (got == want).all()
    assert set(got.tolist()) == set(range(-127, 128))
