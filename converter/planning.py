"""ConversionPlan: all that a conversion will do, computed from headers alone (--dry-run)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flexq_ft.converter.architectures import ARCHITECTURES, Architecture, Unit
from flexq_ft.converter.calibration import check_length
from flexq_ft.converter.manifest import Header
from flexq_ft.converter.model_config import ModelConfig
from flexq_ft.converter.options import ConvertOptions
from flexq_ft.converter.policy import resolve_policy
from flexq_ft.converter.schemes import (
    HEAD_CODECS,
    SCHEMES,
    Codec,
    FileSpec,
    PlainCodec,
    with_static_scales,
)
from flexq_ft.converter.shards import ShardPlan, plan_shards
from flexq_ft.converter.source import Source
from flexq_ft.errors import ConfigError

__all__ = ["ConversionPlan", "Target", "make_plan", "rank_of"]

# What the process holds before it reads a tensor: interpreter, NumPy, native module, vocabulary.
_BASE_BYTES = 220 << 20
_TORCH_BYTES = 700 << 20  # torch and transformers, once they are loaded
_WINDOW = 512  # tokens of a calibration's


@dataclass(frozen=True, kw_only=True)
class Target:
    """One `<tp>-gpu` folder: its shards and every .bin file, in writing order."""

    shards: ShardPlan
    files: Mapping[str, FileSpec]

    @property
    def folder_name(self) -> str:
        return f"{self.shards.size}-gpu"

    @property
    def total_bytes(self) -> int:
        return sum(spec.nbytes for spec in self.files.values())

    def rank_bytes(self, rank: int) -> int:
        """What a rank reads: its own files and the replicated ones."""
        return sum(
            spec.nbytes for name, spec in self.files.items() if rank_of(name) in (None, rank)
        )


@dataclass(frozen=True, kw_only=True)
class ConversionPlan:
    header: Header
    architecture: Architecture
    units: tuple[Unit, ...]
    targets: tuple[Target, ...]
    source_bytes: int
    held_bytes: Mapping[str, int]  # of each unit: see Source.held_bytes
    notes: tuple[str, ...]  # of the source
    jobs: int

    codecs: Mapping[str, Codec]  # by a unit's stem

    def codec(self, unit: Unit) -> Codec:
        return self.codecs[unit.stem]

    def stored_as(self, unit: Unit) -> str:
        """The scheme of a linear of the layers, w8 or w6 of the head, the dtype of all else."""
        if unit.is_head:
            return self.header.lm_head
        return self.header.scheme.name if unit.linear else self.header.dtype

    def is_quantized(self, unit: Unit) -> bool:
        return unit.is_head or bool(unit.linear and self.header.scheme.quantized)

    @property
    def linear_elements(self) -> int:
        return sum(unit.elements for unit in self.units if unit.linear)

    @property
    def total_elements(self) -> int:
        return sum(unit.elements for unit in self.units)

    @property
    def peak_bytes(self) -> int:
        """Estimate of peak memory: the largest tensors' working sets, not the model."""
        shards = tuple(target.shards for target in self.targets)
        sets = sorted(
            (self.codec(u).working_bytes(u, shards) + self.held_bytes[u.stem] for u in self.units),
            reverse=True,
        )
        conversion = sum(sets[: self.jobs])
        calibration = self.header.calibration
        if calibration is None:
            return _BASE_BYTES + conversion
        calibrating = self._calibration_bytes(calibration["sequences"] * calibration["length"])
        if self.header.rounding is None:  # one after the other
            return _BASE_BYTES + _TORCH_BYTES + max(conversion, calibrating)
        return _BASE_BYTES + _TORCH_BYTES + conversion + calibrating + self._moment_bytes

    def _calibration_bytes(self, tokens: int) -> int:
        """In fp32: the embedding or one layer, and the hidden states before and behind it."""
        layer = sum(u.elements for u in self.units if u.stem.startswith("model.layers.0."))
        table = max(u.elements for u in self.units if not u.stem.startswith("model.layers."))
        return 4 * (max(layer, table) + 2 * tokens * self.header.config.hidden_size)

    @property
    def _moment_bytes(self) -> int:
        """Of GPTQ: a layer's second moments in fp32, and the largest ones' factors in fp64."""
        if self.header.rounding is None or self.header.rounding["method"] != "gptq":
            return 0
        sizes = {u.linear: u.columns for u in self.units if u.linear.startswith("layers.0.")}
        squares = [columns**2 for columns in sizes.values()]
        return 4 * sum(squares) + 32 * max(squares) * self.jobs

    def linear_bytes(self, target: Target) -> int:
        """Stored bytes of the layers' linears, scales included."""
        names = (
            name
            for unit in self.units
            if unit.linear
            for name in self.codec(unit).files(unit, target.shards)
        )
        return sum(target.files[name].nbytes for name in names)

    def bits_per_weight(self, target: Target) -> float:
        return 8 * self.linear_bytes(target) / self.linear_elements

    @property
    def warnings(self) -> tuple[str, ...]:
        cuts = tuple(
            f"tensor parallel {target.shards.size}: {name} is cut inside a group of 128, so its"
            " integers differ slightly from those of one rank"
            for target in self.targets
            for name in target.shards.cut_groups
        )
        return self.notes + cuts


def make_plan(source: Source, options: ConvertOptions) -> ConversionPlan:
    """Raises WeightError for a source that does not fit its architecture, ConfigError for options
    that do not fit the model."""
    config = source.config
    architecture = ARCHITECTURES[config.architecture]
    scheme = SCHEMES[options.resolved_scheme]
    if options.activation_scales == "static":
        scheme = with_static_scales(scheme)
    policy = options.resolved_policy
    calibration = _calibration(config, options)
    header = Header(
        source_kind=source.kind,
        config=config,
        scheme=scheme,
        dtype=options.resolved_dtype,
        policy=None
        if policy is None
        else resolve_policy(policy, num_layers=config.num_layers, linears=architecture.linears()),
        lm_head=options.lm_head,
        transforms=source.transforms,
        smoothing=_smoothing(calibration, options),
        rounding=_rounding(calibration, options),
        calibration=calibration,
    )
    shapes = {name: info.shape for name, info in source.tensors.items()}
    quantized_head = options.lm_head in HEAD_CODECS
    units = tuple(architecture.units(config, shapes, quantized_head=quantized_head))
    shards = [
        plan_shards(config, size=size, group_size=scheme.group_size) for size in sorted(options.tp)
    ]
    codecs = _codecs(header, units)
    targets = []
    for plan in shards:
        if quantized_head:
            _check_head_shares(plan, config)
        files: dict[str, FileSpec] = {}
        for unit in units:
            files |= codecs[unit.stem].files(unit, plan)
        targets.append(Target(shards=plan, files=files))
    used = {part.name for unit in units for part in unit.parts}
    return ConversionPlan(
        header=header,
        architecture=architecture,
        units=units,
        targets=tuple(targets),
        source_bytes=sum(source.tensors[name].source_bytes for name in used),
        held_bytes={
            unit.stem: max(source.held_bytes(part.name) for part in unit.parts) for unit in units
        },
        notes=source.notes,
        jobs=options.jobs,
        codecs=codecs,
    )


def _codecs(header: Header, units: Sequence[Unit]) -> dict[str, Codec]:
    linear, plain = header.scheme.linear(header.dtype), PlainCodec(header.dtype)
    out = {unit.stem: linear if unit.linear else plain for unit in units}
    heads = [unit.stem for unit in units if unit.is_head]
    return out | {stem: HEAD_CODECS[header.lm_head]() for stem in heads}


def _check_head_shares(plan: ShardPlan, config: ModelConfig) -> None:
    if all(begin < end for begin, end in plan.vocab):
        return
    raise ConfigError(
        f"tensor parallel size {plan.size} leaves a rank no row of the lm_head of {config.name}",
        cause=f"{config.vocab_size} tokens in equal shares, the last ones smaller",
        hint="a smaller --tp, or --lm-head fp16",
    )


def _smoothing(
    calibration: dict[str, Any] | None, options: ConvertOptions
) -> dict[str, Any] | None:
    if options.resolved_alpha is None or calibration is None:
        return None
    return {
        "method": "smoothquant",
        "alpha": options.resolved_alpha,
        "calibration": calibration,
    }


def _rounding(calibration: dict[str, Any] | None, options: ConvertOptions) -> dict[str, Any] | None:
    if options.rounding == "nearest":
        return None
    return {"method": options.rounding, "calibration": calibration}


def _calibration(config: ModelConfig, options: ConvertOptions) -> dict[str, Any] | None:
    calibration = options.calibration
    if calibration is None:
        return None
    length = calibration.length or min(_WINDOW, config.max_positions)
    check_length(config, length)
    return {
        "text_sha256": hashlib.sha256(calibration.read()).hexdigest(),
        "sequences": calibration.sequences,
        "length": length,
    }


def rank_of(file: str) -> int | None:
    """The rank in a file's name; None: a file of all ranks."""
    number = file.removesuffix(".bin").rpartition(".")[2]
    return int(number) if number.isdecimal() else None
