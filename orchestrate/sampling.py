"""SamplingParams: how tokens are chosen and when a sequence ends. FasterTransformer's meanings.

temperature 0, or top_k = 0 with top_p = 0, is greedy; top_k > 0 with top_p = 0 means top_p = 1.
"""

from __future__ import annotations

import dataclasses
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flexq_ft.errors import ConfigError

_SEED_LIMIT = 1 << 64
_INT_LIMIT = 1 << 63  # of the engine's integers
_LEAST_TEMPERATURE = 1e-5  # the engine's: below it logits overflow


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Keyword-only; values are checked on construction (ConfigError names the first bad one).
    Numbers may be NumPy's."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    min_tokens: int = 0
    max_tokens: int = 128
    # None: drawn when the request starts, and recorded in its output.
    seed: int | None = None
    ignore_eos: bool = False
    # Texts that end the output; it is cut before them.
    stop: Sequence[str] = ()
    # Token sequences; a stop word stays in the output, a bad word is never completed.
    stop_words: Sequence[Sequence[int]] = ()
    bad_words: Sequence[Sequence[int]] = ()
    logprobs: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in FIELDS:
            if isinstance(value := getattr(self, name), np.generic):
                object.__setattr__(self, name, value.item())
        self._check_types()
        hot = self.temperature == 0 or self.temperature >= _LEAST_TEMPERATURE
        self._check("temperature", hot, f"0 (greedy), or at least {_LEAST_TEMPERATURE:g}")
        self._check("top_k", self.top_k >= 0, "at least 0 (0: all tokens)")
        self._check("top_p", 0 <= self.top_p <= 1, "between 0 and 1")
        self._check("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        self._check("repetition_penalty", self.repetition_penalty > 0, "above 0")
        self._check("min_tokens", self.min_tokens >= 0, "at least 0")
        self._check("max_tokens", self.max_tokens >= 1, "at least 1")
        self._check("min_tokens", self.min_tokens <= self.max_tokens, "at most max_tokens")
        if self.seed is not None:
            self._check("seed", 0 <= self.seed < _SEED_LIMIT, "between 0 and 2**64 - 1")
        self._check("stop", all(self.stop), "without empty texts")
        self._check("stop_words", all(self.stop_words), "without empty sequences")
        self._check("bad_words", all(self.bad_words), "without empty sequences")
        if self.repetition_penalty != 1.0 and self.presence_penalty != 0.0:
            raise ConfigError(
                "repetition_penalty and presence_penalty cannot be used together.",
                cause=f"they are {self.repetition_penalty} and {self.presence_penalty}; "
                "FasterTransformer allows one of them.",
                hint="leave repetition_penalty at 1 or presence_penalty at 0",
            )

    def with_seed(self) -> SamplingParams:
        """The same with a seed drawn, if there is none."""
        if self.seed is not None:
            return self
        return dataclasses.replace(self, seed=secrets.randbits(32))

    def engine_fields(self) -> dict[str, Any]:
        """What the engine takes: all but what is done on texts here."""
        fields = {name: getattr(self, name) for name in FIELDS if name not in _PYTHON_FIELDS}
        fields["stop_words"] = [list(word) for word in self.stop_words]
        fields["bad_words"] = [list(word) for word in self.bad_words]
        return fields

    def _check(self, name: str, good: bool, rule: str) -> None:
        if not good:
            raise ConfigError(
                f"{name} is {getattr(self, name)!r}; it must be {rule}.", hint=f"change {name}"
            )

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind = str(field.type)
            if kind == "float":
                good = _is_int(value) or isinstance(value, float)
                good = good and abs(value) <= sys.float_info.max  # NaN is not
            elif kind == "int":
                good = _is_int(value) and abs(value) < _INT_LIMIT
            elif kind == "bool":
                good = isinstance(value, bool)
            elif kind == "int | None":
                good = value is None or _is_int(value)
            elif field.name == "stop":
                good = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
            else:
                good = _is_id_lists(value)
            self._check(field.name, good, _KINDS.get(kind, "a list as documented"))


def params_for(
    count: int, params: SamplingParams | Sequence[SamplingParams]
) -> list[SamplingParams]:
    """One for each of so many prompts."""
    if isinstance(params, SamplingParams):
        return [params] * count
    if not (isinstance(params, Sequence) and all(isinstance(p, SamplingParams) for p in params)):
        raise ConfigError(
            f"sampling is given by SamplingParams, not by {params!r:.80}.",
            hint="SamplingParams(max_tokens=64)",
        )
    if len(params) != count:
        raise ConfigError(
            f"{count} prompts, but {len(params)} SamplingParams.",
            hint="one SamplingParams for all, or one for each prompt",
        )
    return list(params)


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_id_lists(value: object) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(word, list | tuple) and all(_is_int(v) and abs(v) < _INT_LIMIT for v in word)
        for word in value
    )


_KINDS = {
    "float": "a finite number",
    "int": "a whole number of 64 bits",
    "bool": "true or false",
    "int | None": "a whole number",
    "Sequence[str]": "a list of texts",
    "Sequence[Sequence[int]]": "a list of lists of token ids",
}
_PYTHON_FIELDS = ("stop", "logprobs")
FIELDS = tuple(field.name for field in dataclasses.fields(SamplingParams))
