"""From a sweep file to its cases: the product, exclusions, inclusions, and a name for each."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flexq_ft.converter.options import POLICY_SCHEMES
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.shapes import find_shape
from flexq_ft.orchestrate.sweep.points import STEP_NAMES
from flexq_ft.orchestrate.sweep.spec import ExcludedCases, Quality, Repeat, SweepSpec

AXES = (
    "model", "scheme", "policy", "dtype", "lm_head", "step_kernel", "tp", "batch", "prompt_tokens",
    "output_tokens",
)  # fmt: skip
# What logits depend on, beside the model.
_NUMBERS = ("scheme", "policy", "dtype", "lm_head", "tp", "device")
# What a folder is known by; hashing weights at every start would take longer than a small sweep.
_MANIFEST = "manifest.json"


class Case(BaseModel):
    """One point of a sweep, with every value resolved. `scheme` None: as the model folder is.

    model: a path, or with synthetic_weights a shape, by its name or its INI.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    synthetic_weights: bool = False
    scheme: str | None = None
    policy: str | None = None
    dtype: str | None = None
    lm_head: str | None = None
    step_kernel: str = "auto"
    tp: int = 1
    batch: int = 1
    prompt_tokens: int = 128
    output_tokens: int = 128
    latency_at: tuple[int, ...] = ()
    repeat: Repeat = Repeat()
    quality: Quality = Quality()
    seed: int = 0
    device: str = "auto"

    def lengths(self) -> list[int]:
        """Numbers of output tokens that are reported of each request, the whole one last."""
        return sorted({*self.latency_at, self.output_tokens})

    def source(self) -> Path:
        """The files of the model, or the INI of its shape."""
        return find_shape(self.model) if self.synthetic_weights else Path(self.model)

    @property
    def case_id(self) -> str:
        """16 hex digits over the resolved case and the state of the files it names.

        A model, text or policy file that was replaced therefore makes a new case, which is measured
        again.
        """
        known: dict[str, Any] = {"case": self.model_dump(mode="json")}
        known["case"]["model"] = str(self.source().resolve())
        known["model_state"] = model_state(self.source())
        known |= self._policy_state()
        if self.quality.ppl is not None:
            known["case"]["quality"]["ppl"]["text"] = None
            known["text_sha256"] = _file_sha256(Path(self.quality.ppl.text))
        return _digest(known)

    def quality_id(self) -> str:
        """What perplexity and agreement depend on: cases that differ only in batch or lengths
        share one evaluation."""
        ppl = self.quality.ppl
        return _digest(
            {
                "model": str(Path(self.model).resolve()),
                "model_state": model_state(Path(self.model)),
                "numbers": [getattr(self, name) for name in _NUMBERS],
                "text": None if ppl is None else ppl.model_dump(exclude={"text"}),
                "text_sha256": None if ppl is None else _file_sha256(Path(ppl.text)),
                **self._policy_state(),
            }
        )

    def _policy_state(self) -> dict[str, str]:
        """Of a policy that is a file."""
        if self.policy is None or self.policy in POLICY_SCHEMES:
            return {}
        return {"policy_sha256": _file_sha256(Path(self.policy))}

    def baseline(self) -> Case | None:
        """The case that agreement is taken with: the same model and text, its scheme, tp 1."""
        if self.quality.agreement_with is None:
            return None
        scheme, policy = resolve_scheme(self.quality.agreement_with, None)
        quality = self.quality.model_copy(update={"agreement_with": None})
        return self.model_copy(
            update={
                "scheme": scheme,
                "policy": policy,
                "lm_head": None,
                "step_kernel": "auto",
                "tp": 1,
                "quality": quality,
                # Nothing is timed, so no length can be too long.
                "batch": 1,
                "prompt_tokens": 1,
                "output_tokens": 1,
                "latency_at": (),
            }
        )

    def label(self) -> str:
        """Short and unique enough for a progress line."""
        parts = [self.scheme or "as converted", self.policy]
        parts.append(self.lm_head and f"lm_head {self.lm_head}")
        parts.append(STEP_NAMES.get(self.step_kernel))
        precision = " ".join(part for part in parts if part)
        return (
            f"{Path(self.model).name} {precision} tp {self.tp} batch {self.batch} "
            f"{self.prompt_tokens}+{self.output_tokens} tokens"
        )


def resolve_scheme(scheme: str | None, policy: str | None) -> tuple[str | None, str | None]:
    """Short forms written out: (`w6a6`, None) is (`w6ax`, `w6a6`). A policy alone means w6ax."""
    if scheme in POLICY_SCHEMES:
        if policy is not None and policy != scheme:
            raise ConfigError(
                f"scheme {scheme} already names a policy, and policy {policy} was given too.",
                hint=f"scheme: w6ax with policy: {policy}, or scheme: {scheme} alone",
            )
        return "w6ax", scheme
    if scheme is None and policy is not None:
        scheme = "w6ax"
    if scheme == "w6ax":
        return scheme, policy or "flexq"
    return scheme, None  # a policy means nothing to the other schemes


def plan_cases(spec: SweepSpec, *, base: Path, device: str | None = None) -> list[Case]:
    """All cases of a sweep, in the order of its axes, none twice.

    device: instead of the file's.
    base: the folder that paths in the file are relative to. Exclusions apply to the matrix only.
    Raises ConfigError if a text, a policy file or a shape is absent, or no case is left.
    """
    quality = _resolve_quality(spec.quality, base)
    cases: dict[str, Case] = {}
    excluded = [_resolved_exclusion(item, spec, base) for item in spec.exclude]
    for values in itertools.chain(_product(spec, excluded, base), _included(spec, base)):
        case = Case(
            **values,
            synthetic_weights=spec.synthetic_weights,
            latency_at=tuple(n for n in spec.latency_at if n <= values["output_tokens"]),
            repeat=spec.repeat,
            quality=quality,
            seed=spec.seed,
            device=device or spec.device,
        )
        cases.setdefault(case.model_dump_json(), case)
    if not cases:
        raise ConfigError(
            "the sweep has no case left.", cause="exclude removes every case of the matrix."
        )
    longest = max(case.output_tokens for case in cases.values())
    if any(tokens > longest for tokens in spec.latency_at):
        raise ConfigError(
            f"latency_at: {max(spec.latency_at)} tokens, and no case has more than {longest} "
            "output_tokens."
        )
    return list(cases.values())


def _product(
    spec: SweepSpec, excluded: list[dict[str, list[Any]]], base: Path
) -> Iterator[dict[str, Any]]:
    if spec.matrix is None:
        return
    axes = {name: getattr(spec.matrix, name) or [None] for name in AXES}
    for combination in itertools.product(*axes.values()):
        values = _resolve(dict(zip(axes, combination, strict=True)), spec, base)
        if not any(all(values[k] in v for k, v in item.items()) for item in excluded):
            yield values


def _included(spec: SweepSpec, base: Path) -> Iterator[dict[str, Any]]:
    for item in spec.include:
        yield _resolve(item.model_dump(), spec, base)


def _resolve(values: dict[str, Any], spec: SweepSpec, base: Path) -> dict[str, Any]:
    model = values["model"] or spec.model
    if model is None:
        raise ConfigError(
            "the sweep names no model.", hint="model: PATH at the top of the file, or in matrix"
        )
    scheme, policy = resolve_scheme(values["scheme"], values["policy"])
    if scheme is None and spec.synthetic_weights:
        scheme = "fp16"  # nothing was converted
    return {
        **values,
        "model": _resolve_model(model, base, is_shape=spec.synthetic_weights),
        "scheme": scheme,
        "policy": _resolve_policy(policy, base),
    }


def _resolve_model(model: str, base: Path, *, is_shape: bool) -> str:
    """A path as it is shown, or the name of a shape, which must exist."""
    if is_shape and not model.endswith(".ini"):
        find_shape(model)
        return model
    return shown_path(base / model)


def _resolve_policy(policy: str | None, base: Path) -> str | None:
    """A policy is a name, or a YAML file beside the sweep file."""
    if policy is None or policy in POLICY_SCHEMES:
        return policy
    if not (base / policy).is_file():
        raise ConfigError(
            f"there is no policy '{policy}'.",
            cause=f"it is neither one of {', '.join(POLICY_SCHEMES)} nor a file in {base}.",
        )
    return shown_path(base / policy)


def _resolved_exclusion(item: ExcludedCases, spec: SweepSpec, base: Path) -> dict[str, list[Any]]:
    """Axis -> values to match. `scheme: flexq` is one policy of w6ax; `scheme: w6ax` is all."""
    match = item.model_dump(exclude_none=True)
    if "model" in match:
        match["model"] = [
            _resolve_model(model, base, is_shape=spec.synthetic_weights) for model in match["model"]
        ]
    if "policy" in match:
        match["policy"] = [_resolve_policy(policy, base) for policy in match["policy"]]
    short = [scheme for scheme in match.get("scheme", []) if scheme in POLICY_SCHEMES]
    if short and len(short) < len(match["scheme"]):
        raise ConfigError(
            f"exclude: {', '.join(match['scheme'])} mixes schemes with policies of w6ax.",
            hint="two entries, one for each kind",
        )
    if short:
        match["scheme"] = ["w6ax"]
        match["policy"] = short
    return match


def _resolve_quality(quality: Quality, base: Path) -> Quality:
    if quality.ppl is None:
        return quality
    path = base / quality.ppl.text
    if not path.is_file():
        raise ConfigError(
            f"the text for perplexity, {path}, does not exist.",
            hint="quality.ppl.text: a path relative to the sweep file",
        )
    ppl = quality.ppl.model_copy(update={"text": shown_path(path)})
    return quality.model_copy(update={"ppl": ppl})


def shown_path(path: Path) -> str:
    """Relative to the working directory if it lies under it, else absolute."""
    resolved = path.resolve()
    here = Path.cwd()
    return str(resolved.relative_to(here) if resolved.is_relative_to(here) else resolved)


def model_state(path: Path) -> list[Any]:
    """What changes when a model does: manifests, or else name, size and time of each file."""
    if path.is_file():
        return [_stat(path)]
    manifests = sorted(path.glob(f"*-gpu/{_MANIFEST}")) + sorted(path.glob(_MANIFEST))
    if manifests:
        return [_file_sha256(manifest) for manifest in manifests]
    return [_stat(file) for file in sorted(path.glob("*")) if file.is_file()]


def _stat(path: Path) -> list[Any]:
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
