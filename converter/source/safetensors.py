"""Safetensors checkpoints, single or in shards, read with pread.

Not through a mapping: mapped pages count as resident memory, and the converter's promise is a
working set of a few tensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flexq_ft.converter.dtypes import NUMPY_DTYPES, Array
from flexq_ft.converter.source.base import TensorInfo
from flexq_ft.converter.source.hf_folder import HfFolder, find_weight_files
from flexq_ft.errors import WeightError

__all__ = ["SafetensorsSource"]

_DTYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_MAX_HEADER = 100 << 20  # the format's own limit


@dataclass(frozen=True)
class _Location:
    file: int  # descriptor
    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str  # as the header spells it
    nbytes: int


class SafetensorsSource(HfFolder):
    kind = "safetensors"

    def __init__(self, folder: Path) -> None:
        paths, weight_map = find_weight_files(folder, "model.safetensors")
        super().__init__(folder, paths)
        self._files: list[int] = []
        self._locations: dict[str, _Location] = {}
        try:
            self._read_headers(paths)
            _check_index(weight_map, self._locations)
        except BaseException:
            self.close()
            raise
        self._tensors = {
            name: TensorInfo(place.shape, place.nbytes) for name, place in self._locations.items()
        }

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def read_rows(self, name: str, begin: int, end: int) -> Array:
        place = self._locations[name]
        if place.dtype not in _DTYPES:
            raise WeightError(
                f"{name} is stored as {place.dtype}, which is not supported",
                hint=f"supported: {', '.join(_DTYPES)}",
            )
        dtype = NUMPY_DTYPES[_DTYPES[place.dtype]]
        row_bytes = math.prod(place.shape[1:]) * dtype.itemsize
        values = np.empty((end - begin, *place.shape[1:]), dtype)
        view = values.reshape(-1).view(np.uint8).data
        offset = place.offset + begin * row_bytes
        while len(view):
            got = os.preadv(place.file, [view], offset)
            if got == 0:
                raise WeightError(
                    f"{place.path.name} ended while {name} was read", hint="download it again"
                )
            view, offset = view[got:], offset + got
        return values

    def close(self) -> None:
        for file in self._files:
            os.close(file)
        self._files.clear()

    def _read_headers(self, paths: tuple[Path, ...]) -> None:
        for path in paths:
            for name, location in self._read_header(path).items():
                if name in self._locations:
                    raise WeightError(
                        f"{name} is in {self._locations[name].path.name} and in {path.name}",
                        hint="download the checkpoint again",
                    )
                self._locations[name] = location

    def _read_header(self, path: Path) -> dict[str, _Location]:
        file = os.open(path, os.O_RDONLY)
        self._files.append(file)
        size = os.fstat(file).st_size
        length = int.from_bytes(os.pread(file, 8, 0), "little")
        if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise WeightError(
                f"{path.name} is no safetensors file: its header would hold {length} bytes of"
                f" {size}",
                hint="download the file again",
            )
        try:
            header = json.loads(os.pread(file, length, 8))
            header.pop("__metadata__", None)
            base = 8 + length
            found = {name: _location(file, path, base, raw) for name, raw in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise WeightError(
                f"the header of {path.name} is faulty", cause=str(error), hint="download it again"
            ) from error
        end = base + max((raw["data_offsets"][1] for raw in header.values()), default=0)
        if end != size:
            raise WeightError(
                f"{path.name} holds {size} bytes, its header describes {end}",
                hint="download the file again",
            )
        return found


def _location(file: int, path: Path, base: int, raw: Mapping[str, Any]) -> _Location:
    begin, end = raw["data_offsets"]
    shape = tuple(raw["shape"])
    dtype = raw["dtype"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)) or begin > end:
        raise ValueError(f"offsets {begin}, {end} or shape {list(shape)} are no sizes")
    if dtype in _DTYPES:
        expected = math.prod(shape) * NUMPY_DTYPES[_DTYPES[dtype]].itemsize
        if end - begin != expected:
            raise ValueError(f"{end - begin} bytes for shape {list(shape)} of {dtype}")
    return _Location(file, path, base + begin, shape, dtype, end - begin)


def _check_index(weight_map: Mapping[str, str], found: Mapping[str, _Location]) -> None:
    wrong = [
        name
        for name, file in weight_map.items()
        if name not in found or found[name].path.name != file
    ]
    if wrong:
        raise WeightError(
            f"{len(wrong)} tensors are not where model.safetensors.index.json puts them",
            cause=", ".join(wrong[:20]),
            hint="download the checkpoint again",
        )
