"""Case: one point of a sweep, every value resolved, and what it is known by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flexq_ft.converter.options import POLICY_SCHEMES, CalibrationOptions
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.models import Preparation
from flexq_ft.orchestrate.shapes import find_shape
from flexq_ft.orchestrate.sweep.points import STEP_NAMES
from flexq_ft.orchestrate.sweep.spec import CalibrationSpec, Quality, Repeat, Rounding

# What logits depend on, beside the model and its preparation.
_NUMBERS = ("scheme", "policy", "dtype", "lm_head", "tp", "device")
_PREPARATION = {"rotate", "smooth", "rounding", "calibration"}
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
    rotate: bool = False
    smooth: bool = False
    rounding: Rounding = "nearest"
    calibration: CalibrationSpec | None = None
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
        known: dict[str, Any] = {"case": self.model_dump(mode="json", exclude=_PREPARATION)}
        known["case"]["model"] = str(self.source().resolve())
        known["model_state"] = model_state(self.source())
        known |= self._policy_state() | self._preparation_state()
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
                **self._preparation_state(),
            }
        )

    def _policy_state(self) -> dict[str, str]:
        """Of a policy that is a file."""
        if self.policy is None or self.policy in POLICY_SCHEMES:
            return {}
        return {"policy_sha256": _file_sha256(Path(self.policy))}

    def _preparation_state(self) -> dict[str, Any]:
        """Nothing of weights as they are: a sweep from before there was a choice goes on."""
        words = self.preparation().words()
        if not words:
            return {}
        state: dict[str, Any] = {"preparation": words}
        if (spec := self.calibration) is not None:
            text = _file_sha256(Path(spec.text))
            state["calibration"] = [text, spec.sequences, spec.length]
        return state

    def preparation(self) -> Preparation:
        """Of the checkpoint, where it is converted on the fly."""
        calibration = None
        if (spec := self.calibration) is not None:
            calibration = CalibrationOptions(
                text=Path(spec.text), sequences=spec.sequences, length=spec.length
            )
        return Preparation(
            rotate=self.rotate,
            smooth=self.smooth,
            rounding=self.rounding,
            calibration=calibration,
        )

    def baseline(self) -> Case | None:
        """The case that agreement is taken with: the same model and text, its scheme, tp 1, the
        weights as they are."""
        if self.quality.agreement_with is None:
            return None
        scheme, policy = resolve_scheme(self.quality.agreement_with, None)
        quality = self.quality.model_copy(update={"agreement_with": None})
        return self.model_copy(
            update={
                "scheme": scheme,
                "policy": policy,
                "lm_head": None,
                "rotate": False,
                "smooth": False,
                "rounding": "nearest",
                "calibration": None,
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
        parts += self.preparation().words()
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
