"""Codec: how one scheme writes a linear's weight. A precision is a value, not a branch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from flexq_ft.converter.architectures.spec import Unit
from flexq_ft.converter.dtypes import ITEM_BYTES
from flexq_ft.converter.report import Quality
from flexq_ft.converter.schemes.blocks import Outputs, column_range, row_ranges
from flexq_ft.converter.shards import ShardPlan
from flexq_ft.converter.source.base import Source

__all__ = ["Codec", "FileSpec", "rank_shape", "row_major"]


@dataclass(frozen=True)
class FileSpec:
    """What a .bin file holds, as the manifest says it (without its hash)."""

    shape: tuple[int, ...]
    dtype: str  # fp32 fp16 bf16 int8 int6
    layout: str  # row_major | frag16x128
    nbytes: int


def row_major(shape: tuple[int, ...], dtype: str) -> FileSpec:
    return FileSpec(shape, dtype, "row_major", prod(shape) * ITEM_BYTES[dtype])


def rank_shape(unit: Unit, plan: ShardPlan, rank: int) -> tuple[int, int]:
    """(N, K) of a rank's part of a matrix."""
    begin, end = column_range(unit, plan, rank)
    return sum(last - first for first, last in row_ranges(unit, plan, rank)), end - begin


class Codec(ABC):
    """Stateless; safe to use from several threads."""

    @abstractmethod
    def files(self, unit: Unit, plan: ShardPlan) -> Mapping[str, FileSpec]:
        """The files of all ranks, in the order they are written."""

    @abstractmethod
    def encode(self, unit: Unit, source: Source, outputs: Outputs) -> Quality | None:
        """Reads the unit once and writes its files for every target."""

    @abstractmethod
    def working_bytes(self, unit: Unit, plans: tuple[ShardPlan, ...]) -> int:
        """An upper estimate of the memory that encode holds at a time."""
