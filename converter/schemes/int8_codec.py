"""int8 per output channel (w8a16 and w8a8 share their weight files)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flexq_ft import _native
from flexq_ft.converter.architectures.spec import Unit
from flexq_ft.converter.dtypes import FloatArray, as_float32
from flexq_ft.converter.report import Quality, QualityMeter
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
from flexq_ft.converter.shards import ShardPlan
from flexq_ft.converter.source.base import Source

__all__ = ["Int8Codec"]

_LARGEST_CODE = 127


class Int8Codec(Codec):
    """codes [N, K] int8 and scales [N] fp32. Scales are the whole row's, also when K is split.

    static: of a calibrated source; one more file holds the scale of the inputs, [1] fp32.
    """

    def __init__(self, *, static: bool = False) -> None:
        self._static = static

    def files(self, unit: Unit, plan: ShardPlan) -> Mapping[str, FileSpec]:
        files = {}
        for rank in range(plan.size):
            rows, columns = rank_shape(unit, plan, rank)
            files[f"{unit.stem}.w8.{rank}.bin"] = row_major((rows, columns), "int8")
            files[f"{unit.stem}.w8.scale.{rank}.bin"] = row_major((rows,), "fp32")
            if self._static:
                files[f"{unit.stem}.w8.act_scale.{rank}.bin"] = row_major((1,), "fp32")
        return files

    def encode(self, unit: Unit, source: Source, outputs: Outputs) -> Quality | None:
        codes = np.empty((unit.rows, unit.columns), np.int8)
        scales = np.empty(unit.rows, np.float32)
        meter = QualityMeter(largest_code=_LARGEST_CODE)
        for tensor, first, row, values in iterate_rows(unit, source):
            block = as_float32(values)
            rows = slice(row, row + len(block))
            codes[rows], scales[rows] = quantize_block(
                _native.kernels.quantize_weight_int8, block, tensor=tensor, first_row=first
            )
            meter.add(block, codes[rows], scales[rows, None], unit.columns)
        for plan in outputs.plans:
            for rank in range(plan.size):
                ranges = row_ranges(unit, plan, rank)
                first_column, last_column = column_range(unit, plan, rank)
                count = sum(end - begin for begin, end in ranges)
                part = codes[:, first_column:last_column]
                sink = outputs.open(plan, f"{unit.stem}.w8.{rank}.bin")
                for begin, end in row_blocks(count, last_column - first_column):
                    sink.write(gather(part, ranges, begin, end))
                sink = outputs.open(plan, f"{unit.stem}.w8.scale.{rank}.bin")
                sink.write(gather(scales, ranges, 0, count))
                if self._static:
                    sink = outputs.open(plan, f"{unit.stem}.w8.act_scale.{rank}.bin")
                    sink.write(_input_scale(source.input_maximum(unit.linear)))
        return meter.result(tensor=unit.stem, linear=unit.name)

    def working_bytes(self, unit: Unit, plans: tuple[ShardPlan, ...]) -> int:
        return unit.elements + 16 * min(unit.elements, BLOCK_ELEMENTS)


def _input_scale(maximum: float) -> FloatArray:
    """[1]; 1 for inputs that are as good as zero (docs/numerics.md, section 2)."""
    scale = np.float32(maximum) / np.float32(_LARGEST_CODE)
    return np.array([scale if scale >= 2.0**-100 else 1.0], np.float32)
