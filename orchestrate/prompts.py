"""PromptReader: what a user gives as prompts becomes ids, and sequences that fit the model."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.engine.info import EngineInfo
from flexq_ft.orchestrate.outputs import TextSequence
from flexq_ft.orchestrate.sampling import SamplingParams, params_for
from flexq_ft.orchestrate.tokenizer import Tokenizer, why_no_tokenizer

# A text, or its ids.
Prompt = str | Sequence[int]


class PromptReader:
    """Of one model. notify: told where max_tokens is more than there is room for."""

    def __init__(
        self, info: EngineInfo, tokenizer: Tokenizer | None, notify: Callable[[str], None]
    ) -> None:
        self._info = info
        self._tokenizer = tokenizer
        self._notify = notify

    def ids(self, prompt: Prompt) -> list[int]:
        """Raises ConfigError for an empty prompt, ids that are not in the vocabulary, and a text
        where there is no tokenizer."""
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise ConfigError(
                    "this model has no tokenizer, so it takes no text.",
                    cause=why_no_tokenizer(self._info.model_dir),
                    hint="token ids: --ids 1,450,7   or, in Python, a list of ids",
                )
            ids = self._tokenizer.encode(prompt)
        else:
            ids = _whole_ids(prompt)
        self._check_ids(ids)
        return ids

    def sequence(self, prompt: Prompt, params: SamplingParams) -> TextSequence:
        """With a seed drawn where params have none. Raises ConfigError as ids does, for a prompt
        that leaves no room for a token, and for stop texts without a tokenizer."""
        ids = self.ids(prompt)
        if len(ids) >= self._info.max_len:
            raise _too_long(len(ids), self._info)
        if params.stop and self._tokenizer is None:
            raise ConfigError(
                "stop texts need a tokenizer, and this model has none.",
                hint="stop_words with token ids",
            )
        room = self._info.max_len - len(ids)
        if params.max_tokens > room:
            self._notify(
                f"the context of {self._info.max_len:,} tokens leaves room for {room:,} after a"
                f" prompt of {len(ids):,}, fewer than max_tokens {params.max_tokens:,}"
            )
        text = prompt if isinstance(prompt, str) else None
        return TextSequence(text, ids, params.with_seed(), self._tokenizer)

    def sequences(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams],
    ) -> list[TextSequence]:
        """Of a list of prompts, or of one text; params for all, or for each."""
        batch = listed(prompts)
        if batch and isinstance(batch[0], int | np.integer):
            raise ConfigError(
                "generate() takes a list of prompts.",
                cause="it was given one list of ids.",
                hint="llm.generate([ids], params)",
            )
        every = params_for(len(batch), params)
        return [self.sequence(prompt, one) for prompt, one in zip(batch, every, strict=True)]

    def _check_ids(self, ids: list[int]) -> None:
        if not ids:
            raise ConfigError("the prompt is empty.", hint="give at least one token")
        wrong = [token for token in ids if not 0 <= token < self._info.vocab_size]
        if wrong:
            raise ConfigError(
                f"token id {wrong[0]} is not in the vocabulary.",
                cause=f"ids go from 0 to {self._info.vocab_size - 1:,}.",
                hint="ids of this model's own tokenizer",
            )


def listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One text as a list of it. Raises ConfigError for what is no list of prompts."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, _NO_LISTS):
        raise _no_prompt(prompts)
    try:
        return list(prompts)  # type: ignore[arg-type]
    except TypeError as error:
        raise ConfigError(
            f"prompts are texts or lists of ids, not {type(prompts).__name__}.",
            hint="llm.generate([prompt], params)",
        ) from error


def _whole_ids(prompt: Any) -> list[int]:
    if isinstance(prompt, _NO_LISTS):
        raise _no_prompt(prompt)
    try:
        return [operator.index(token) for token in prompt]
    except TypeError as error:
        raise _no_prompt(prompt) from error


# Iterable, and none of their values is a prompt or an id that was meant.
_NO_LISTS = (Mapping, bytes, bytearray, set, frozenset)


def _no_prompt(given: object) -> ConfigError:
    return ConfigError(
        f"a prompt is a text or a list of token ids, not {str(given)[:60]!r}.",
        hint="llm.generate(['a text', [1, 450, 7]], params)",
    )


def _too_long(tokens: int, info: EngineInfo) -> ConfigError:
    windowed = info.sliding_window == info.max_len
    return ConfigError(
        f"the prompt has {tokens:,} tokens; with at least one new token it does not fit "
        f"in {info.max_len:,}.",
        cause=f"contexts beyond the model's sliding_window of {info.max_len:,} are not supported."
        if windowed
        else "the context of the model, or --max-len.",
        hint="a shorter prompt"
        if windowed
        else "a shorter prompt, or a larger --max-len if the model allows it",
    )
