"""The form of an architecture: one table row per Hugging Face tensor, checked as a whole.

A row says where a tensor goes in FasterTransformer's folder, its shape in named dimensions, and
how tensor parallelism splits it. Rows with the same FT name are stacked in table order (q, k, v).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from flexq_ft.converter.model_config import ModelConfig
from flexq_ft.errors import WeightError

__all__ = ["Architecture", "Part", "Split", "TensorSpec", "Unit"]

_HEAD_STEM = "model.lm_head.weight"
_EMBEDDING_STEMS = ("model.wte.weight", "model.wte")


class Split(Enum):
    """How ranks share a matrix [N, K] of Hugging Face's order."""

    NONE = "replicated"  # one file, whole on every rank
    COLUMN = "column"  # FT's column-parallel: rows n are split
    ROW = "row"  # FT's row-parallel: columns k are split


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """hf: name with {i} for the layer; ft: file stem, None = known and ignored."""

    hf: str
    ft: str | None = None
    shape: tuple[str, ...] = ()
    split: Split = Split.NONE
    linear: str = ""  # "qkv": a weight that schemes quantise; empty: always float
    when: Callable[[ModelConfig], bool] = lambda config: True
    skip_rows: int = 0  # leading rows of the tensor that the folder does not hold


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source tensor of a unit; its rows from skip_rows on."""

    name: str
    rows: int
    dim: str  # name of the first dimension
    skip_rows: int = 0


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What is converted in one go: the source tensors of one FT stem, stacked along rows."""

    stem: str
    linear: str  # "layers.0.qkv" or empty
    parts: tuple[Part, ...]
    columns: int  # 0 for vectors
    column_dim: str
    split: Split
    is_head: bool = False  # quantised, which no scheme does

    @property
    def name(self) -> str:
        """The runtime's, of a weight that may be quantised."""
        return "lm_head" if self.is_head else self.linear

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def elements(self) -> int:
        return self.rows * max(self.columns, 1)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """wiring: the runtime's graph; root: prefix of tensor names that may be absent."""

    wiring: str
    ini_section: str
    root: str
    tensors: tuple[TensorSpec, ...]

    def units(
        self,
        config: ModelConfig,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        quantized_head: bool = False,
    ) -> list[Unit]:
        """The units of a checkpoint with these tensors.

        quantized_head: the head is a unit to quantise, of a tied model the embedding once more.
        Raises one WeightError that lists every missing, unexpected and misshapen tensor.
        """
        prefix = _common_prefix(self.root, shapes)
        faults: list[str] = []
        known: set[str] = set()
        stems: dict[str, list[tuple[TensorSpec, int | None, str]]] = {}
        for spec, layer in self._expand(config):
            name = _source_name(spec.hf, layer, self.root, prefix)
            known.add(name)
            if spec.ft is None:
                continue
            stems.setdefault(_at_layer(spec.ft, layer), []).append((spec, layer, name))
            expected = _expected_shape(spec, config)
            if name not in shapes:
                faults.append(f"missing: {name} {list(expected)}")
            elif shapes[name] != expected:
                faults.append(f"shape of {name}: {list(shapes[name])}, expected {list(expected)}")
        faults += [f"unexpected: {name}" for name in sorted(set(shapes) - known)]
        if faults:
            _raise_faults(config, faults)
        units = [_unit(stem, rows, config) for stem, rows in stems.items()]
        return _with_quantized_head(units) if quantized_head else units

    def linears(self) -> tuple[str, ...]:
        """Names of linears, without the layer, in table order."""
        return tuple(dict.fromkeys(spec.linear for spec in self.tensors if spec.linear))

    def _expand(self, config: ModelConfig) -> list[tuple[TensorSpec, int | None]]:
        rows: list[tuple[TensorSpec, int | None]] = []
        whole = [spec for spec in self.tensors if "{i}" not in spec.hf]
        per_layer = [spec for spec in self.tensors if "{i}" in spec.hf]
        rows += [(spec, None) for spec in whole if spec.when(config)]
        for layer in range(config.num_layers):
            rows += [(spec, layer) for spec in per_layer if spec.when(config)]
        return rows


def _at_layer(template: str, layer: int | None) -> str:
    return template if layer is None else template.replace("{i}", str(layer))


def _common_prefix(root: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """`root` unless the checkpoint holds the bare model, saved without its first name part."""
    return root if any(name.startswith(root) for name in shapes) else ""


def _source_name(template: str, layer: int | None, root: str, prefix: str) -> str:
    name = _at_layer(template, layer)
    return prefix + name.removeprefix(root) if name.startswith(root) else name


def _expected_shape(spec: TensorSpec, config: ModelConfig) -> tuple[int, ...]:
    dims = config.dims()
    shape = [dims[dim] for dim in spec.shape]
    shape[0] += spec.skip_rows
    return tuple(shape)


def _unit(stem: str, rows: list[tuple[TensorSpec, int | None, str]], config: ModelConfig) -> Unit:
    first, layer, _ = rows[0]
    dims = config.dims()
    matrix = len(first.shape) == 2
    return Unit(
        stem=stem,
        linear=f"layers.{layer}.{first.linear}" if first.linear else "",
        parts=tuple(
            Part(
                name=name,
                rows=dims[spec.shape[0]],
                dim=spec.shape[0],
                skip_rows=spec.skip_rows,
            )
            for spec, _, name in rows
        ),
        columns=dims[first.shape[1]] if matrix else 0,
        column_dim=first.shape[1] if matrix else "",
        split=first.split,
    )


def _with_quantized_head(units: list[Unit]) -> list[Unit]:
    tables = [unit for unit in units if unit.stem in (_HEAD_STEM, *_EMBEDDING_STEMS)]
    table = next((unit for unit in tables if unit.stem == _HEAD_STEM), tables[0])
    head = replace(table, stem=_HEAD_STEM, split=Split.COLUMN, is_head=True)
    return [*(unit for unit in units if unit.stem != _HEAD_STEM), head]


def _raise_faults(config: ModelConfig, faults: list[str]) -> None:
    # Sixty-four layers without a bias are one fact, not sixty-four: the report counts, then lists.
    kinds = {kind: sum(f.startswith(kind) for f in faults) for kind in ("missing", "unexpected")}
    shown = "; ".join(sorted(faults, key=_natural)[:20])
    more = f"; {len(faults) - 20} more" if len(faults) > 20 else ""
    raise WeightError(
        f"{len(faults)} tensors of {config.name} do not fit its architecture"
        f" ({kinds['missing']} missing, {kinds['unexpected']} unexpected,"
        f" {len(faults) - sum(kinds.values())} of the wrong shape)",
        cause=shown + more,
        hint="check config.json against the weight files; nothing was written",
        faults=faults,
    )


def _natural(text: str) -> list[object]:
    return [(1, int(t), "") if t.isdigit() else (0, 0, t) for t in re.split(r"(\d+)", text)]
