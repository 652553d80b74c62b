"""The sweep file, schema `flexq-ft/sweep/1`: what may stand in it, and errors with their lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from flexq_ft.converter.options import DTYPES, LM_HEADS, POLICY_SCHEMES, ROUNDINGS, SCHEMES
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.devices import check_device
from flexq_ft.orchestrate.eval.perplexity import TextProtocol
from flexq_ft.orchestrate.number_list import expand_numbers
from flexq_ft.orchestrate.sweep.layers import LayeredYaml
from flexq_ft.orchestrate.sweep.marks import Location, unknown_key

SCHEMA = "flexq-ft/sweep/1"


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _as_word(value: object) -> object:
    """YAML reads `on` and `off` as truth values."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _known_scheme(value: str) -> str:
    known = (*SCHEMES, *POLICY_SCHEMES)
    if value not in known:
        raise ValueError(f"unknown scheme '{value}'; known: {', '.join(known)}")
    return value


def _known_device(value: str) -> str:
    try:
        return check_device(value)
    except ConfigError as error:
        raise ValueError(f"{error.message} Known: {error.hint}") from error


Count = Annotated[int, Field(ge=1, strict=True)]
Numbers = Annotated[list[Count], BeforeValidator(expand_numbers), Field(min_length=1)]
SchemeName = Annotated[str, pydantic.AfterValidator(_known_scheme)]
Texts = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Schemes = Annotated[list[SchemeName], BeforeValidator(_as_list), Field(min_length=1)]
DeviceName = Annotated[str, pydantic.AfterValidator(_known_device)]
Dtype = Literal["fp16", "bf16", "fp32"]
Dtypes = Annotated[list[Dtype], BeforeValidator(_as_list), Field(min_length=1)]
assert get_args(Dtype) == DTYPES
LmHead = Literal["fp16", "w8", "w6"]
LmHeads = Annotated[list[LmHead], BeforeValidator(_as_list), Field(min_length=1)]
assert get_args(LmHead) == LM_HEADS
Rounding = Literal["nearest", "scale-search", "gptq"]
Roundings = Annotated[list[Rounding], BeforeValidator(_as_list), Field(min_length=1)]
assert get_args(Rounding) == ROUNDINGS
Flag = Annotated[bool, Field(strict=True)]
Flags = Annotated[list[Flag], BeforeValidator(_as_list), Field(min_length=1)]
StepKernel = Annotated[Literal["auto", "on", "off"], BeforeValidator(_as_word)]
StepKernels = Annotated[list[StepKernel], BeforeValidator(_as_list), Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Matrix(_Strict):
    """Axes of the product. An axis that is absent has one value, the default.

    rotate, smooth, rounding: as of `convert`, for models that are converted on the fly. A scheme
    that has no use for one has one case for all its values.
    """

    model: Texts | None = None
    scheme: Schemes | None = None
    policy: Texts | None = None
    dtype: Dtypes | None = None
    lm_head: LmHeads | None = None
    rotate: Flags = [False]
    smooth: Flags | None = None
    rounding: Roundings = ["nearest"]
    step_kernel: StepKernels = ["auto"]
    tp: Numbers = [1]
    batch: Numbers = [1]
    prompt_tokens: Numbers = [128]
    output_tokens: Numbers = [128]


class IncludedCase(_Strict):
    """One whole case beside the matrix; what is absent has the matrix's default."""

    model: str | None = None
    scheme: SchemeName | None = None
    policy: str | None = None
    dtype: Dtype | None = None
    lm_head: LmHead | None = None
    rotate: Flag = False
    smooth: Flag | None = None
    rounding: Rounding = "nearest"
    step_kernel: StepKernel = "auto"
    tp: Count = 1
    batch: Count = 1
    prompt_tokens: Count = 128
    output_tokens: Count = 128


class ExcludedCases(_Strict):
    """Cases to leave out: those that agree in every axis given."""

    model: Texts | None = None
    scheme: Schemes | None = None
    policy: Texts | None = None
    dtype: Dtypes | None = None
    lm_head: LmHeads | None = None
    rotate: Flags | None = None
    smooth: Flags | None = None
    rounding: Roundings | None = None
    step_kernel: StepKernels | None = None
    tp: Numbers | None = None
    batch: Numbers | None = None
    prompt_tokens: Numbers | None = None
    output_tokens: Numbers | None = None


class Repeat(_Strict):
    """Timed requests of a case, after one that warms up: at least `min`; then until the
    coefficient of variation of the decode rate is at most `until_cv`, or `max` is reached."""

    min: Count = 3
    max: Count = 3
    until_cv: float | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _min_alone_is_max_too(cls, data: Any) -> Any:
        if isinstance(data, dict) and "min" in data and "max" not in data:
            return {**data, "max": data["min"]}
        return data

    @model_validator(mode="after")
    def _ordered(self) -> Repeat:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is less than min ({self.min})")
        return self


class CalibrationSpec(_Strict):
    """The text of what is calibrated, as `convert --calibration` has it."""

    text: str
    sequences: Count = 128
    length: Count | None = None


class PerplexitySpec(_Strict):
    """A text, and how perplexity over it is taken (docs/numerics.md)."""

    text: str
    protocol: TextProtocol = "paper"
    window: Annotated[int, Field(ge=2, strict=True)] | None = None
    max_windows: Count | None = None


class Quality(_Strict):
    """What is measured besides speed. agreement_with: a scheme, run at tp 1 over the same text."""

    ppl: PerplexitySpec | None = None
    agreement_with: SchemeName | None = None

    @model_validator(mode="after")
    def _agreement_needs_a_text(self) -> Quality:
        if self.agreement_with is not None and self.ppl is None:
            raise ValueError("agreement_with needs a text: give quality.ppl as well")
        return self


class SweepSpec(_Strict):
    """A sweep file, what it extends merged in. Paths in it are relative to its own folder.

    synthetic_weights: models are shapes (names of configs/models, or INI files) with random
    weights, for times and memory alone. calibration: of the cases that are smoothed or rounded by
    it; as by `convert`, a checkpoint's w8a8 is smoothed where there is one, unless smooth is false.
    rounds: each starts every case once. latency_at: numbers of output tokens whose end-to-end
    latency is taken, all from the one request of a case.
    """

    schema_: Literal["flexq-ft/sweep/1"] = Field(alias="schema")
    model: str | None = None
    synthetic_weights: Flag = False
    matrix: Matrix | None = None
    include: list[IncludedCase] = []
    exclude: list[ExcludedCases] = []
    calibration: CalibrationSpec | None = None
    rounds: Count = 1
    latency_at: Annotated[list[Count], BeforeValidator(expand_numbers)] = []
    repeat: Repeat = Repeat()
    quality: Quality = Quality()
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    device: DeviceName = "auto"

    @model_validator(mode="after")
    def _has_cases(self) -> SweepSpec:
        if self.matrix is None and not self.include:
            raise ValueError("no cases: give a matrix, or include")
        return self

    @model_validator(mode="after")
    def _random_weights_have_no_quality(self) -> SweepSpec:
        if self.synthetic_weights and self.quality.ppl is not None:
            raise ValueError("synthetic_weights are random: leave quality out, or name real models")
        return self

    @model_validator(mode="after")
    def _preparation_has_weights_and_a_text(self) -> SweepSpec:
        matrix = self.matrix or Matrix()
        smooths = True in [*(matrix.smooth or ()), *(item.smooth for item in self.include)]
        rotates = True in [*matrix.rotate, *(item.rotate for item in self.include)]
        roundings = {*matrix.rounding, *(item.rounding for item in self.include)}
        if (smooths or "gptq" in roundings) and self.calibration is None:
            raise ValueError("smooth and rounding gptq need a text: give calibration as well")
        if self.synthetic_weights and (rotates or self.calibration or roundings != {"nearest"}):
            raise ValueError(
                "synthetic_weights are random: leave rotate, rounding and calibration out, or name "
                "real models"
            )
        return self


_KEYS: dict[tuple[str, ...], type[BaseModel]] = {
    (): SweepSpec,
    ("matrix",): Matrix,
    ("include",): IncludedCase,
    ("exclude",): ExcludedCases,
    ("calibration",): CalibrationSpec,
    ("repeat",): Repeat,
    ("quality",): Quality,
    ("quality", "ppl"): PerplexitySpec,
}


def load_spec(path: Path) -> SweepSpec:
    """Read and check a sweep file and what it extends. Raises ConfigError with the file and line
    of each fault."""
    document = LayeredYaml(path)
    try:
        return SweepSpec.model_validate(document.data)
    except pydantic.ValidationError as error:
        faults = [
            document.fault(_in_document(item["loc"], document.data), _describe(item))
            for item in error.errors()
        ]
    faults = list(dict.fromkeys(faults))
    if len(faults) == 1:
        raise ConfigError(faults[0])
    raise ConfigError(
        f"{len(faults)} faults in {path}; nothing was run.", cause="\n    ".join(faults)
    )


def _in_document(location: Location, data: Any) -> Location:
    """The part of pydantic's location that exists in the file (it adds names of its own)."""
    found: list[str | int] = []
    for part in location:
        in_mapping = isinstance(data, dict) and part in data
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if not (in_mapping or in_list):
            break
        data = data[part]
        found.append(part)
    return found


def _describe(item: Any) -> str:
    location = item["loc"]
    names = tuple(part for part in location if isinstance(part, str))
    if item["type"] == "extra_forbidden":
        fields = _KEYS[names[:-1]].model_fields
        known = [field.alias or name for name, field in fields.items()]
        return unknown_key(str(location[-1]), known if names[:-1] else ["extends", *known])
    where = ".".join(names)
    if item["type"] == "missing":
        way_out = f"; this version reads schema: {SCHEMA}" if where == "schema" else ""
        return f"'{where}' is missing{way_out}"
    text = str(item["msg"]).removeprefix("Value error, ")
    given = item["input"]
    if item["type"] == "value_error" or isinstance(given, dict | list):
        return f"{where}: {text}" if where else text
    return f"{where}: {text}, not {given!r}"
