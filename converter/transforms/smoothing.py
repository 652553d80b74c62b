"""Smoothing (SmoothQuant): magnitude moves from a norm's outputs to the weights that read them.

The norm in front of qkv, and that in front of gate/up or fc1, is divided channel by channel by
factors, and the columns of the linears behind it are multiplied by them: the same function, with
inputs that are easier to round. In fp32, rounded to the stored type by the codec.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy
from safetensors import SafetensorError, safe_open

from flexq_ft.converter.architectures import ARCHITECTURES
from flexq_ft.converter.dtypes import Array, FloatArray, as_float32
from flexq_ft.converter.source import Source
from flexq_ft.converter.transforms.base import TransformedSource
from flexq_ft.errors import WeightError

__all__ = ["SMOOTHED_LINEARS", "SmoothedSource", "Smoothing"]

# Linears that read a norm's output.
SMOOTHED_LINEARS = ("qkv", "gate_up", "fc1")
_NORM = re.compile(r"model\.layers\.([0-9]+)\.(input|post_attention)_layernorm\.(weight|bias)")


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """factors: [hidden] fp32, positive, of each smoothed linear ("layers.0.qkv").
    maxima: the largest |x| of every linear's input, smoothed where it is.
    alphas: what a search chose, None for a linear that it left as it was; None without a search.
    tokens: how many were calibrated on."""

    factors: Mapping[str, FloatArray]
    maxima: Mapping[str, float]
    alphas: Mapping[str, float | None] | None
    tokens: int

    def to_bytes(self) -> bytes:
        """A safetensors file: the same smoothing, the same bytes."""
        facts = {"alphas": self.alphas, "maxima": self.maxima, "tokens": self.tokens}
        metadata = {"smoothing": json.dumps(facts, sort_keys=True)}
        return safetensors.numpy.save(dict(self.factors), metadata)

    @classmethod
    def load(cls, path: Path) -> Smoothing:
        """Raises WeightError for a file that to_bytes did not make."""
        try:
            with safe_open(path, "np") as file:
                facts = json.loads(file.metadata()["smoothing"])
                factors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(
                factors=factors,
                maxima=facts["maxima"],
                alphas=facts["alphas"],
                tokens=int(facts["tokens"]),
            )
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise WeightError(
                f"{path} holds no smoothing factors",
                cause=str(error),
                hint="flexq-ft convert SRC OUT --force",
            ) from error


class SmoothedSource(TransformedSource):
    """The same function, smoothed."""

    def __init__(self, source: Source, smoothing: Smoothing) -> None:
        super().__init__(source)
        self._factors = smoothing.factors
        self._maxima = smoothing.maxima
        self._columns: dict[str, str] = {}  # tensor -> linear
        self._norms: dict[str, str] = {}  # tensor -> the linear behind it
        config = source.config
        shapes = {name: info.shape for name, info in source.tensors.items()}
        behind = {"input": "qkv", "post_attention": "gate_up" if config.gated_ffn else "fc1"}
        for unit in ARCHITECTURES[config.architecture].units(config, shapes):
            norm = _NORM.fullmatch(unit.stem)
            if norm:
                self._norms[unit.parts[0].name] = f"layers.{norm[1]}.{behind[norm[2]]}"
            elif unit.linear in self._factors:
                self._columns |= {part.name: unit.linear for part in unit.parts}

    def input_maximum(self, linear: str) -> float:
        return self._maxima[linear]

    def read_rows(self, name: str, begin: int, end: int) -> Array:
        rows = self._source.read_rows(name, begin, end)
        if name in self._columns:
            return as_float32(rows) * self._factors[self._columns[name]]
        if name in self._norms:
            folded: FloatArray = as_float32(rows) / self._factors[self._norms[name]][begin:end]
            return folded
        return rows
