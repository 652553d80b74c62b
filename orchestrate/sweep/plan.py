"""From a sweep file to its cases: the product, exclusions and inclusions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flexq_ft.converter.folder import is_model_folder
from flexq_ft.converter.options import POLICY_SCHEMES
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.shapes import find_shape
from flexq_ft.orchestrate.sweep.case_config import Case, resolve_scheme
from flexq_ft.orchestrate.sweep.spec import CalibrationSpec, ExcludedCases, Quality, SweepSpec

AXES = (
    "model", "scheme", "policy", "dtype", "lm_head", "rotate", "smooth", "rounding", "step_kernel",
    "tp", "batch", "prompt_tokens", "output_tokens",
)  # fmt: skip


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
    path = _resolve_model(model, base, is_shape=spec.synthetic_weights)
    resolved = {**values, "model": path, "scheme": scheme, "policy": _resolve_policy(policy, base)}
    return resolved | _resolve_preparation(resolved, _resolve_calibration(spec.calibration, base))


def _resolve_preparation(
    values: dict[str, Any], calibration: CalibrationSpec | None
) -> dict[str, Any]:
    """What a scheme has no use for is left out. `smooth` None: as `convert` does, of a checkpoint;
    a folder is as it was converted."""
    scheme, smooth, rounding = (values[name] for name in ("scheme", "smooth", "rounding"))
    if smooth is None:
        smooth = scheme == "w8a8" and calibration is not None
        smooth = smooth and not is_model_folder(Path(values["model"]))
    if scheme not in (None, "w8a8", "w6ax"):
        smooth = False
    if scheme not in (None, "w6ax"):
        rounding = "nearest"
    is_used = smooth or rounding != "nearest"
    return {
        "smooth": smooth,
        "rounding": rounding,
        "calibration": calibration if is_used else None,
    }


def _resolve_calibration(calibration: CalibrationSpec | None, base: Path) -> CalibrationSpec | None:
    if calibration is None:
        return None
    path = base / calibration.text
    if not path.is_file():
        raise ConfigError(
            f"the text to calibrate on, {path}, does not exist.",
            hint="calibration.text: a path relative to the sweep file",
        )
    return calibration.model_copy(update={"text": shown_path(path)})


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
