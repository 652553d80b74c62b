"""What a user may choose at conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flexq_ft.errors import ConfigError

__all__ = ["DTYPES", "LM_HEADS", "POLICY_SCHEMES", "ROUNDINGS", "SCHEMES", "SCHEME_NAMES"]
__all__ += ["CalibrationOptions", "ConvertOptions", "check_dtype", "scheme_of_int8_mode"]

DTYPES = ("fp16", "bf16", "fp32")
SCHEMES = (*DTYPES, "w8a16", "w8a8", "w6ax")
# Short forms: w6ax with that policy.
POLICY_SCHEMES = ("flexq", "w6a6", "w6a8", "w6a16")
SCHEME_NAMES = (*SCHEMES, *POLICY_SCHEMES)
# fp16 stands for the dtype of the float files.
LM_HEADS = ("fp16", "w8", "w6")
ROUNDINGS = ("nearest", "scale-search", "gptq")
_SMOOTH_SCHEMES = ("w8a8", "w6ax")
_INT8_MODES = {0: "fp16", 1: "w8a16", 2: "w8a8", 5: "w6ax"}


def check_dtype(dtype: str | None) -> None:
    """Raises ConfigError for what is neither one of DTYPES nor None."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}", hint=f"--dtype {' | '.join(DTYPES)}")


def scheme_of_int8_mode(mode: int) -> str:
    """FasterTransformer's number for a scheme."""
    if mode not in _INT8_MODES:
        known = ", ".join(f"{number} ({name})" for number, name in _INT8_MODES.items())
        raise ConfigError(f"int8_mode {mode} is not supported", hint=f"int8_mode: {known}")
    return _INT8_MODES[mode]


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """A text that the model runs on before it is rounded: `sequences` windows, evenly spaced.

    length: tokens of a window; default 512, or the model's positions where those are fewer.
    device: of torch: auto, cpu, cuda, cuda:N.
    """

    text: Path
    sequences: int = 128
    length: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise ConfigError(
                f"--calibration-sequences must be at least 1, not {self.sequences}",
                hint="--calibration-sequences 128",
            )

    def read(self) -> bytes:
        """Raises ConfigError for what is no file."""
        if not self.text.is_file():
            raise ConfigError(
                f"--calibration {self.text} is no file", hint="--calibration FILE, a UTF-8 text"
            )
        return self.text.read_bytes()


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `convert`.

    scheme: one of SCHEME_NAMES; fp16, bf16 and fp32 also set the dtype of the float files.
    dtype:  of the float files (norms, embeddings, biases); default fp16.
    policy: w6ax only: a built-in name, a path to a YAML file, or a parsed mapping; default flexq.
    lm_head: one of LM_HEADS: the head as a float file, int8 per row, or int6 in groups of 128.
    rotate: the residual stream in another basis (transforms/rotation.py).
    calibration: the text of what is calibrated (smoothing, rounding).
    smooth: SmoothQuant, of w8a8 and w6ax; default: w8a8 with a calibration.
    smooth_alpha: its share of activations, 0 to 1; or `search`, the best for each linear.
                  Default 0.5.
    activation_scales: of w8a8: dynamic, each token its own; static, from the calibration.
    rounding: of w6ax: one of ROUNDINGS. gptq needs a calibration, scale-search is better with one.
    tp:     one folder is written for each.
    jobs:   tensors worked on at a time; memory grows with it.
    force:  start again even onto a complete folder, which stays until the new one is done.
    """

    scheme: str = "fp16"
    dtype: str | None = None
    policy: str | dict[str, Any] | None = None
    lm_head: str = "fp16"
    rotate: bool = False
    calibration: CalibrationOptions | None = None
    smooth: bool | None = None
    smooth_alpha: float | Literal["search"] | None = None
    activation_scales: Literal["dynamic", "static"] = "dynamic"
    rounding: str = "nearest"
    tp: tuple[int, ...] = (1,)
    jobs: int = 1
    force: bool = False

    def __post_init__(self) -> None:
        if self.scheme not in SCHEME_NAMES:
            raise ConfigError(
                f"unknown scheme {self.scheme!r}", hint=f"--scheme {' | '.join(SCHEME_NAMES)}"
            )
        check_dtype(self.dtype)
        if self.scheme in DTYPES and self.dtype not in (None, self.scheme):
            raise ConfigError(
                f"--scheme {self.scheme} means {self.scheme} files, but --dtype {self.dtype} was"
                " given too",
                hint=f"--scheme {self.dtype}",
            )
        if self.lm_head not in LM_HEADS:
            raise ConfigError(
                f"unknown lm_head {self.lm_head!r}", hint=f"--lm-head {' | '.join(LM_HEADS)}"
            )
        self._check_policy()
        self._check_smoothing()
        self._check_rounding()
        if not self.tp or any(size < 1 for size in self.tp) or len(set(self.tp)) != len(self.tp):
            raise ConfigError(
                "--tp must be distinct sizes of at least 1, not"
                f" {', '.join(map(str, self.tp)) or 'none'}",
                hint="--tp 1,2",
            )
        if self.jobs < 1:
            raise ConfigError(f"--jobs must be at least 1, not {self.jobs}", hint="--jobs 1")

    def _check_policy(self) -> None:
        if self.policy is None:
            return
        if self.scheme in POLICY_SCHEMES:
            raise ConfigError(
                f"--scheme {self.scheme} names its policy, but --policy was given too",
                hint="--scheme w6ax --policy …",
            )
        if self.scheme != "w6ax":
            raise ConfigError(
                f"--policy applies to w6ax only, not to {self.scheme}", hint="--scheme w6ax"
            )

    def _check_smoothing(self) -> None:
        if self.smooth and self.resolved_scheme not in _SMOOTH_SCHEMES:
            raise ConfigError(
                f"--smooth applies to {' and '.join(_SMOOTH_SCHEMES)}, not to {self.scheme}",
                cause="it prepares activations for rounding, and this scheme rounds none",
                hint="--scheme w8a8",
            )
        if self.smooth and self.calibration is None:
            raise ConfigError(
                "--smooth needs a text to calibrate on", hint="--smooth --calibration FILE"
            )
        if self.smooth_alpha is not None and self.resolved_alpha is None:
            raise ConfigError(
                "--smooth-alpha was given, but nothing is smoothed",
                hint="--smooth --calibration FILE",
            )
        if self.activation_scales == "static" and (
            self.resolved_scheme != "w8a8" or self.resolved_alpha is None
        ):
            raise ConfigError(
                "--activation-scales static needs w8a8, smoothed",
                cause="one scale for all tokens and channels fits smoothed activations only",
                hint="--scheme w8a8 --calibration FILE",
            )
        alpha = self.smooth_alpha
        if isinstance(alpha, float | int) and not 0 <= alpha <= 1:
            raise ConfigError(
                f"--smooth-alpha must be from 0 to 1, or search, not {alpha}",
                hint="--smooth-alpha 0.5",
            )
        unused = self.resolved_alpha is None and self.rounding == "nearest"
        if self.calibration is not None and unused:
            raise ConfigError(
                f"--calibration was given, but nothing of this conversion to {self.scheme} uses it",
                hint="--smooth, of w8a8 and w6ax; --rounding gptq, of w6ax; or leave it out",
            )

    def _check_rounding(self) -> None:
        if self.rounding not in ROUNDINGS:
            raise ConfigError(
                f"unknown rounding {self.rounding!r}", hint=f"--rounding {' | '.join(ROUNDINGS)}"
            )
        if self.rounding != "nearest" and self.resolved_scheme != "w6ax":
            raise ConfigError(
                f"--rounding {self.rounding} applies to w6ax only, not to {self.scheme}",
                hint="--scheme w6ax",
            )
        if self.rounding == "gptq" and self.calibration is None:
            raise ConfigError(
                "--rounding gptq needs a text to calibrate on",
                hint="--calibration FILE; or --rounding scale-search, which needs none",
            )

    @property
    def resolved_alpha(self) -> float | Literal["search"] | None:
        """Of smoothing; None: nothing is smoothed."""
        smooth = self.smooth
        if smooth is None:
            smooth = self.resolved_scheme == "w8a8" and self.calibration is not None
        if not smooth:
            return None
        return 0.5 if self.smooth_alpha is None else self.smooth_alpha

    @property
    def resolved_scheme(self) -> str:
        """One of fp16 (any float type), w8a16, w8a8, w6ax."""
        if self.scheme in DTYPES:
            return "fp16"
        return "w6ax" if self.scheme in POLICY_SCHEMES else self.scheme

    @property
    def resolved_dtype(self) -> str:
        return self.scheme if self.scheme in DTYPES else self.dtype or "fp16"

    @property
    def resolved_policy(self) -> str | dict[str, Any] | None:
        if self.resolved_scheme != "w6ax":
            return None
        if self.scheme in POLICY_SCHEMES:
            return self.scheme
        return "flexq" if self.policy is None else self.policy
