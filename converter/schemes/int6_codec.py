"""w6ax: 6-bit codes in frag16x128 tiles, fp16 scales for groups of 128 along K.

The whole matrix is quantised first and cut afterwards, so every tensor-parallel size holds the
same integers. Where the heads force a cut inside a group (the plan's cut_groups) the shard is cut
first, and its groups restart at its edge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flexq_ft import _native
from flexq_ft.converter.architectures.spec import Split, Unit
from flexq_ft.converter.dtypes import Array, FloatArray, as_float32
from flexq_ft.converter.report import Quality, QualityMeter
from flexq_ft.converter.rounding.rounder import Rounder
from flexq_ft.converter.schemes.blocks import (
    BLOCK_ELEMENTS,
    Outputs,
    column_range,
    gather,
    iterate_rows,
    row_blocks,
    row_ranges,
)
from flexq_ft.converter.schemes.codec import Codec, FileSpec, rank_shape, row_major
from flexq_ft.converter.schemes.quantize import quantize_block
from flexq_ft.converter.shards import GROUP_SIZE, Range, ShardPlan
from flexq_ft.converter.source.base import Source

__all__ = ["Int6Codec"]

_LARGEST_CODE = 31
_TILE_ROWS = 16
_TILE_BYTES = 1536


class _Quantized:
    """A matrix quantised with groups that restart at each of the given column ranges."""

    def __init__(self, unit: Unit, columns: Sequence[Range], rounder: Rounder | None) -> None:
        self._columns = tuple(columns)
        self._rounder = rounder
        self._groups = [
            (first, min(first + GROUP_SIZE, end))
            for begin, end in self._columns
            for first in range(begin, end, GROUP_SIZE)
        ]
        self.codes = np.empty((unit.rows, unit.columns), np.int8)
        self.scales = np.empty((unit.rows, len(self._groups)), np.float16)

    def add(self, block: FloatArray, *, row: int, tensor: str, first_row: int) -> None:
        rows = slice(row, row + len(block))
        group = 0
        for begin, end in self._columns:  # also where a rounder follows: it checks the weights
            count = _groups(end - begin)
            self.codes[rows, begin:end], self.scales[rows, group : group + count] = quantize_block(
                _native.kernels.quantize_weight_int6,
                block[:, begin:end],
                tensor=tensor,
                first_row=first_row,
                first_column=begin,
            )
            group += count
        if self._rounder is not None:
            self.codes[rows], self.scales[rows] = self._rounder.round(block, self._groups)

    def scales_of(self, begin: int, end: int) -> Array:
        """Scales [N, groups] of the columns [begin, end), which start a group."""
        first = [group[0] for group in self._groups].index(begin)
        return self.scales[:, first : first + _groups(end - begin)]


class Int6Codec(Codec):
    """rounder: of this unit's weights; None: the nearest codes, as docs/numerics.md has them."""

    def __init__(self, rounder: Rounder | None = None) -> None:
        self._rounder = rounder

    def files(self, unit: Unit, plan: ShardPlan) -> Mapping[str, FileSpec]:
        files = {}
        for rank in range(plan.size):
            rows, columns = rank_shape(unit, plan, rank)
            groups = _groups(columns)
            packed = -(-rows // _TILE_ROWS) * groups * _TILE_BYTES
            files[f"{unit.stem}.int6.{rank}.bin"] = FileSpec(
                (rows, columns), "int6", "frag16x128", packed
            )
            files[f"{unit.stem}.int6.scale.{rank}.bin"] = row_major((groups, rows), "fp16")
        return files

    def encode(self, unit: Unit, source: Source, outputs: Outputs) -> Quality | None:
        # One quantisation serves all targets, plus one for each that cuts first.
        whole = _Quantized(unit, [(0, unit.columns)], self._rounder)
        cut = {
            plan.size: _Quantized(
                unit, [column_range(unit, plan, rank) for rank in range(plan.size)], self._rounder
            )
            for plan in outputs.plans
            if _cuts_groups(unit, plan)
        }
        meter = QualityMeter(largest_code=_LARGEST_CODE)
        for tensor, first, row, values in iterate_rows(unit, source):
            block = as_float32(values)
            for quantized in (whole, *cut.values()):
                quantized.add(block, row=row, tensor=tensor, first_row=first)
            rows = slice(row, row + len(block))
            scales = whole.scales[rows].astype(np.float32)
            meter.add(block, whole.codes[rows], scales, GROUP_SIZE)
        for plan in outputs.plans:
            _write(unit, cut.get(plan.size, whole), plan, outputs)
        return meter.result(tensor=unit.stem, linear=unit.name)

    def working_bytes(self, unit: Unit, plans: tuple[ShardPlan, ...]) -> int:
        copies = 1 + sum(_cuts_groups(unit, plan) for plan in plans)
        scales = unit.rows * _groups(unit.columns) * 4
        return copies * (unit.elements + scales) + 16 * min(unit.elements, BLOCK_ELEMENTS)


def _write(unit: Unit, quantized: _Quantized, plan: ShardPlan, outputs: Outputs) -> None:
    for rank in range(plan.size):
        ranges = row_ranges(unit, plan, rank)
        first, last = column_range(unit, plan, rank)
        count = sum(end - begin for begin, end in ranges)
        sink = outputs.open(plan, f"{unit.stem}.int6.{rank}.bin")
        codes = quantized.codes[:, first:last]
        for begin, end in row_blocks(count, last - first):
            rows = np.ascontiguousarray(gather(codes, ranges, begin, end))
            sink.write(_native.kernels.pack_int6(rows))
        sink = outputs.open(plan, f"{unit.stem}.int6.scale.{rank}.bin")
        sink.write(gather(quantized.scales_of(first, last), ranges, 0, count).T)


def _groups(columns: int) -> int:
    return -(-columns // GROUP_SIZE)


def _cuts_groups(unit: Unit, plan: ShardPlan) -> bool:
    return unit.split is Split.ROW and any(f".{name}." in unit.stem for name in plan.cut_groups)
