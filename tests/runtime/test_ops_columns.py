"""Columns that are cut among ranks, before and after the gather; copies, so bit-equal."""

from __future__ import annotations

import numpy as np
import pytest

from flexq_ft import errors
from flexq_ft._native import ops


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("n,columns", [(0, 5), (1, 1), (7, 9), (1023, 1024), (2048, 2051)])
def test_padding_is_zeros_behind(device, rng, rows, n, columns):
    x = rng.standard_normal((rows, n)).astype(np.float32)
    out = ops.pad_columns(x, columns=columns)
    np.testing.assert_array_equal(out[:, :n], x)
    np.testing.assert_array_equal(out[:, n:], np.zeros((rows, columns - n), np.float32))


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize(
    "ranks,columns", [(1, 7), (2, 10), (2, 11), (3, 320), (4, 5), (4, 4097), (8, 32000)]
)
def test_gathered_columns_are_the_whole_matrix(device, rng, rows, ranks, columns):
    whole = rng.standard_normal((rows, columns)).astype(np.float32)
    local = -(-columns // ranks)
    padded = np.full((rows, ranks * local), np.nan, np.float32)  # padding is not read
    padded[:, :columns] = whole
    parts = np.ascontiguousarray(padded.reshape(rows, ranks, local).transpose(1, 0, 2))
    np.testing.assert_array_equal(ops.gather_columns(parts, columns=columns), whole)


def test_more_columns_than_there_are_parts_are_refused():
    with pytest.raises(errors.InternalError, match="gather_columns: columns"):
        ops.gather_columns(np.zeros((2, 1, 4), np.float32), columns=9)
    with pytest.raises(errors.InternalError, match="pad_columns: columns"):
        ops.pad_columns(np.zeros((1, 4), np.float32), columns=3)
