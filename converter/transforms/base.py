"""TransformedSource: what every transform has in common, and passes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexq_ft.converter.dtypes import Array
from flexq_ft.converter.model_config import ModelConfig
from flexq_ft.converter.source import Source, TensorInfo

__all__ = ["TransformedSource"]


class TransformedSource(Source):
    """A source over another. Subclasses rewrite what they must: read_rows, and tensors, config
    and hf_config where those change; held_bytes where read_rows keeps whole tensors; transforms
    for the manifest's list."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.kind = source.kind

    @property
    def transforms(self) -> tuple[dict[str, Any], ...]:
        return self._source.transforms

    @property
    def notes(self) -> tuple[str, ...]:
        return self._source.notes

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def config(self) -> ModelConfig:
        return self._source.config

    def hf_config(self) -> dict[str, Any]:
        return self._source.hf_config()

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._source.tensors

    def read_rows(self, name: str, begin: int, end: int) -> Array:
        return self._source.read_rows(name, begin, end)

    def held_bytes(self, name: str) -> int:
        return self._source.held_bytes(name)

    def source_files(self) -> tuple[Path, ...]:
        return self._source.source_files()

    def extra_files(self) -> dict[str, bytes]:
        return self._source.extra_files()

    def close(self) -> None:
        self._source.close()
