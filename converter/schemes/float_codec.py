"""Float files: FasterTransformer's own layout, [in, out] for linears, whole for everything else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flexq_ft.converter.architectures.spec import Split, Unit
from flexq_ft.converter.dtypes import ITEM_BYTES, NUMPY_DTYPES, cast_checked
from flexq_ft.converter.report import Quality
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
from flexq_ft.converter.shards import ShardPlan
from flexq_ft.converter.source.base import Source

__all__ = ["FloatLinearCodec", "PlainCodec"]


class PlainCodec(Codec):
    """Embeddings, norms and biases: the tensor as it is, or the rank's part of a bias."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def files(self, unit: Unit, plan: ShardPlan) -> Mapping[str, FileSpec]:
        if unit.split is Split.NONE:
            shape = (unit.rows, unit.columns) if unit.columns else (unit.rows,)
            return {f"{unit.stem}.bin": row_major(shape, self._dtype)}
        return {
            f"{unit.stem}.{rank}.bin": row_major(rank_shape(unit, plan, rank)[:1], self._dtype)
            for rank in range(plan.size)
        }

    def encode(self, unit: Unit, source: Source, outputs: Outputs) -> Quality | None:
        if unit.split is Split.NONE:
            self._copy(unit, source, outputs)
        else:
            self._cut(unit, source, outputs)
        return None

    def working_bytes(self, unit: Unit, plans: tuple[ShardPlan, ...]) -> int:
        return 10 * min(unit.elements, BLOCK_ELEMENTS)

    def _copy(self, unit: Unit, source: Source, outputs: Outputs) -> None:
        sinks = [outputs.open(plan, f"{unit.stem}.bin") for plan in outputs.plans]
        for tensor, first, _, values in iterate_rows(unit, source):
            block = cast_checked(values, self._dtype, tensor=tensor, first_row=first)
            for sink in sinks:
                sink.write(block)

    def _cut(self, unit: Unit, source: Source, outputs: Outputs) -> None:
        blocks = [
            cast_checked(values, self._dtype, tensor=tensor, first_row=first)
            for tensor, first, _, values in iterate_rows(unit, source)
        ]
        vector = np.concatenate(blocks)
        for plan in outputs.plans:
            for rank in range(plan.size):
                ranges = row_ranges(unit, plan, rank)
                count = sum(end - begin for begin, end in ranges)
                sink = outputs.open(plan, f"{unit.stem}.{rank}.bin")
                sink.write(gather(vector, ranges, 0, count))


class FloatLinearCodec(Codec):
    """A linear's weight, transposed to [K, N of the rank]."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def files(self, unit: Unit, plan: ShardPlan) -> Mapping[str, FileSpec]:
        files = {}
        for rank in range(plan.size):
            rows, columns = rank_shape(unit, plan, rank)
            files[f"{unit.stem}.{rank}.bin"] = row_major((columns, rows), self._dtype)
        return files

    def encode(self, unit: Unit, source: Source, outputs: Outputs) -> Quality | None:
        matrix = np.empty((unit.rows, unit.columns), NUMPY_DTYPES[self._dtype])
        for tensor, first, row, values in iterate_rows(unit, source):
            matrix[row : row + len(values)] = cast_checked(
                values, self._dtype, tensor=tensor, first_row=first
            )
        for plan in outputs.plans:
            for rank in range(plan.size):
                ranges = row_ranges(unit, plan, rank)
                first_column, last_column = column_range(unit, plan, rank)
                rows = sum(end - begin for begin, end in ranges)
                sink = outputs.open(plan, f"{unit.stem}.{rank}.bin")
                for begin, end in row_blocks(last_column - first_column, rows):
                    columns = matrix[:, first_column + begin : first_column + end]
                    sink.write(gather(columns, ranges, 0, rows).T)
        return None

    def working_bytes(self, unit: Unit, plans: tuple[ShardPlan, ...]) -> int:
        return unit.elements * ITEM_BYTES[self._dtype] + 12 * min(unit.elements, BLOCK_ELEMENTS)
