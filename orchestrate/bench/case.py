"""What is measured: one scheme of one model at one batch and lengths, and how to repeat it."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexq_ft.converter.options import DTYPES, POLICY_SCHEMES, ConvertOptions
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.bench.roofline import ModelSizes
from flexq_ft.orchestrate.models import AS_IT_IS, FoundModel, Preparation, find_model
from flexq_ft.orchestrate.shapes import find_shape

if TYPE_CHECKING:
    from flexq_ft.converter.progress import ProgressSink


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row. model: a path, or with is_shape a name of configs/models. Scheme None: as the
    folder is. prefill_chunk: most prompt tokens of one step, None: as the engine chooses."""

    model: str
    is_shape: bool = False
    synthetic_weights: bool = False
    scheme: str | None = None
    policy: str | None = None
    dtype: str | None = None
    lm_head: str | None = None
    tp: int = 1
    threads: int | None = None
    device: str = "auto"
    batch: int = 1
    prompt_tokens: int = 128
    output_tokens: int = 128
    prefill_chunk: int | None = None
    graphs: bool = True
    step_kernel: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.is_shape and not self.synthetic_weights:
            raise ConfigError(
                f"the shape {self.model} has no weights.",
                hint="--synthetic-weights: random ones, for timing only",
            )

    @property
    def longest(self) -> int:
        """Tokens of one sequence at its end."""
        return self.prompt_tokens + self.output_tokens

    def label(self) -> str:
        """Short, for progress lines; unique among the cases of one command."""
        parts = [self.scheme or "as converted", self.policy or ""]
        parts += [] if self.lm_head is None else [f"lm_head {self.lm_head}"]
        name = " ".join(part for part in parts if part)
        return f"{name} batch {self.batch} {self.prompt_tokens}+{self.output_tokens}"

    def arguments(self) -> list[str]:
        """Of the command that measures this case alone, defaults written out."""
        out = ["bench", "latency", *(["--shape"] if self.is_shape else []), self.model]
        out += ["--synthetic-weights"] if self.synthetic_weights else []
        for name in ("scheme", "policy", "dtype", "lm_head", "threads", "prefill_chunk"):
            if (value := getattr(self, name)) is not None:
                out += [f"--{name.replace('_', '-')}", str(value)]
        for name in ("tp", "device", "batch", "prompt_tokens", "output_tokens", "seed"):
            out += [f"--{name.replace('_', '-')}", str(getattr(self, name))]
        out += [] if self.step_kernel == "auto" else ["--step-kernel", self.step_kernel]
        return out if self.graphs else [*out, "--no-graphs"]

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def plan_cases(
    case: Case,
    *,
    schemes: Sequence[str],
    batches: Sequence[int],
    prompts: Sequence[int],
    outputs: Sequence[int],
) -> list[list[Case]]:
    """Groups of cases that differ in scheme only: those are measured in turns.

    A policy is for those of the schemes that have one. Raises ConfigError if none has.
    """
    names: Sequence[str | None] = schemes or [case.scheme]
    if case.policy is not None and not any(name in (None, "w6ax") for name in names):
        raise ConfigError(
            f"--policy {case.policy} was given, and no scheme takes one.", hint="--scheme w6ax"
        )
    return [
        [
            replace(
                case,
                scheme=scheme,
                policy=case.policy if scheme in (None, "w6ax") else None,
                batch=batch,
                prompt_tokens=prompt,
                output_tokens=output,
            )
            for scheme in names
        ]
        for batch, prompt, output in itertools.product(batches, prompts, outputs)
    ]


@dataclass(frozen=True)
class Subject:
    """The model of a case, found: what the engine is made of, and its sizes."""

    found: FoundModel
    sizes: ModelSizes
    scheme: str
    dtype: str


def find_subject(
    case: Case,
    *,
    cache_dir: Path | None,
    notify: Callable[[str], None],
    progress: ProgressSink | None,
    preparation: Preparation = AS_IT_IS,
) -> Subject:
    """Raises ConfigError if the model is not there, or the lengths do not fit it."""
    if case.is_shape:
        found = _of_shape(case)
        sizes = ModelSizes.of_ini(found.folder)
        scheme = found.scheme or "fp16"
        dtype = found.dtype or (scheme if scheme in DTYPES else "fp16")
    else:
        from flexq_ft import _native

        found = find_model(
            Path(case.model),
            tensor_parallel_size=case.tp,
            scheme=case.scheme,
            policy=case.policy,
            dtype=case.dtype,
            lm_head=case.lm_head,
            cache_dir=cache_dir,
            notify=notify,
            progress=progress,
            preparation=preparation,
        )
        sizes = ModelSizes.of_config(_native.open_model_folder(str(found.folder)).config)
        scheme, dtype = found.numbers()
    if case.longest > sizes.max_positions:
        raise ConfigError(
            f"{case.prompt_tokens} prompt and {case.output_tokens} output tokens do not fit the "
            f"model's {sizes.max_positions} positions.",
            hint="fewer --prompt-tokens or --output-tokens",
        )
    return Subject(found, sizes, scheme, dtype)


def _of_shape(case: Case) -> FoundModel:
    from flexq_ft.converter.policy import resolve_policy

    ini = find_shape(case.model)
    options = ConvertOptions(
        scheme=case.scheme or "fp16",
        dtype=None if case.scheme in DTYPES else case.dtype,
        policy=case.policy,
        tp=(case.tp,),
    )
    policy = None
    if options.resolved_policy is not None:
        sizes = ModelSizes.of_ini(ini)
        linears = tuple(linear.name for linear in sizes.linears())
        policy = resolve_policy(options.resolved_policy, num_layers=sizes.layers, linears=linears)
    scheme = options.scheme if options.scheme in DTYPES else options.resolved_scheme
    return FoundModel(ini, scheme, policy, case.dtype, case.lm_head)


def reproduce_line(case: Case, *, rounds: int) -> str:
    """The command that measures the row again."""
    return shlex.join(["flexq-ft", *case.arguments(), "--repeat", str(rounds)])


def scheme_label(case: Case) -> str:
    """As a table shows it: with the policy's name where it is one, and a quantised head."""
    label = case.scheme or "as converted"
    if case.policy is not None:
        label = f"{case.scheme or 'w6ax'} ({Path(case.policy).name})"
    elif case.scheme in POLICY_SCHEMES:
        label = f"w6ax ({case.scheme})"
    return label if case.lm_head in (None, "fp16") else f"{label}, lm_head {case.lm_head}"
