"""Walking a unit's matrix by row blocks, and cutting ranks' parts out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from flexq_ft.converter.architectures.spec import Split, Unit
from flexq_ft.converter.dtypes import Array
from flexq_ft.converter.shards import Range, ShardPlan
from flexq_ft.converter.source.base import Source

__all__ = ["BLOCK_ELEMENTS", "ByteSink", "Outputs", "column_range", "gather", "iterate_rows"]
__all__ += ["row_blocks", "row_ranges"]

# Of fp32: 4 MB, so that a block and its temporaries stay near the caches.
BLOCK_ELEMENTS = 1 << 20
_ROW_STEP = 16  # a tile's height: packed rows come in sixteens


class ByteSink(Protocol):
    def write(self, values: Array) -> None:
        """Appends the array's bytes, in C order."""


class Outputs(Protocol):
    """The files of one unit, in every target folder."""

    @property
    def plans(self) -> Sequence[ShardPlan]: ...

    def open(self, plan: ShardPlan, file: str) -> ByteSink: ...


def row_blocks(rows: int, columns: int) -> Iterator[Range]:
    """Half-open row ranges of about BLOCK_ELEMENTS elements, multiples of 16 rows."""
    step = max(_ROW_STEP, BLOCK_ELEMENTS // max(columns, 1) // _ROW_STEP * _ROW_STEP)
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)


def iterate_rows(unit: Unit, source: Source) -> Iterator[tuple[str, int, int, Array]]:
    """(tensor, its first row, row in the unit, values) over all parts, in order."""
    offset = 0
    for part in unit.parts:
        for begin, end in row_blocks(part.rows, unit.columns):
            first = begin + part.skip_rows
            yield (
                part.name,
                first,
                offset + begin,
                source.read_rows(part.name, first, end + part.skip_rows),
            )
        offset += part.rows


def row_ranges(unit: Unit, plan: ShardPlan, rank: int) -> list[Range]:
    """Rows of the stacked unit that a rank holds, one range per part."""
    ranges = []
    offset = 0
    for part in unit.parts:
        begin, end = (0, part.rows)
        if unit.split is Split.COLUMN:
            begin, end = plan.of_dim(part.dim, rank)
        ranges.append((offset + begin, offset + end))
        offset += part.rows
    return ranges


def column_range(unit: Unit, plan: ShardPlan, rank: int) -> Range:
    if unit.split is Split.ROW:
        return plan.of_dim(unit.column_dim, rank)
    return 0, unit.columns


def gather(values: Array, ranges: Sequence[Range], begin: int, end: int) -> Array:
    """Rows [begin, end) of the concatenation of row ranges of values."""
    pieces = []
    offset = 0
    for first, last in ranges:
        low, high = max(begin - offset, 0), min(end - offset, last - first)
        if low < high:
            pieces.append(values[first + low : first + high])
        offset += last - first
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
