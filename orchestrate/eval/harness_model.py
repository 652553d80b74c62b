"""A model of ours behind lm-eval's interface. Importing this needs the package lm-eval."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.cli.progress import ProgressBar
from flexq_ft.orchestrate.sampling import SamplingParams
from flexq_ft.orchestrate.tokenizer import Tokenizer

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

_TOGETHER = 64  # requests between two steps of the progress bar

Progress = Callable[[str, int], AbstractContextManager[ProgressBar]]
# What lm-eval asks for: the texts (its cache's key, or None), ids of the context, of what follows.
TokenRequest = tuple[Any, list[int], list[int]]


class HarnessModel(Protocol):
    """What is evaluated: the runtime, or a simulation."""

    max_positions: int

    @property
    def tokenizer(self) -> Tokenizer: ...

    def score_batch(
        self, texts: Sequence[Sequence[int]], first: Sequence[int], /
    ) -> Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]: ...

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[str]: ...


class Harness(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """Implements loglikelihood, loglikelihood_rolling and generate_until.

    Requests run in order of length, the longest first, so that what does not fit in memory fails at
    once and those that run together are alike. Longer ones than the context lose their
    beginning.
    """

    def __init__(self, model: HarnessModel, *, max_len: int, progress: Progress) -> None:
        """max_len: tokens of context and continuation together."""
        super().__init__()
        self._model = model
        self._progress = progress
        self._max_len = min(max_len, model.max_positions)

    @property
    def eot_token_id(self) -> int:
        return self._special("eos_token")

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: BOS, or EOS where there is none."""
        bos = self._model.tokenizer.special_id("bos_token")
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """Tokens that predict others: one fewer than are scored."""
        return self._max_len - 1

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **unused: Any
    ) -> list[int]:
        tokenizer = self._model.tokenizer
        if add_special_tokens is None:
            bos = tokenizer.special_text("bos_token")
            add_special_tokens = not (bos and string.startswith(bos))
        return tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], **unused: Any
    ) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        lengths = [len(context) + len(after) for _, context, after in requests]
        order = sorted(range(len(requests)), key=lambda i: -lengths[i])
        with self._progress("loglikelihood", len(requests)) as bar:
            for begin in range(0, len(order), _TOGETHER):
                some = order[begin : begin + _TOGETHER]
                found = self._answers([requests[i] for i in some])
                for index, answer in zip(some, found, strict=True):
                    answers[index] = answer
                    if (texts := requests[index][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, answer)
                bar.advance(len(some))
        return answers

    def _answers(self, requests: Sequence[TokenRequest]) -> list[tuple[float, bool]]:
        """Of each: log-probability of what follows, and whether greedy decoding would give it."""
        texts, first = [], []
        for _, context, after in requests:
            if len(after) > self.max_length:
                raise ConfigError(
                    f"a continuation of {len(after):,} tokens does not fit in {self._max_len:,}.",
                    hint="a larger --max-len, if the model allows it",
                )
            texts.append((context + after)[-self._max_len :])
            first.append(len(texts[-1]) - len(after))
        scores = self._model.score_batch(texts, first)
        return [
            (
                float(np.asarray(logprobs, dtype=np.float64).sum()),
                np.array_equal(np.asarray(best), after),
            )
            for (_, _, after), (logprobs, best) in zip(requests, scores, strict=True)
        ]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        windows: list[TokenRequest] = []
        owners = []
        for index, request in enumerate(requests):
            (text,) = request.args
            for pair in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(index)
        sums = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += logprob
        for request, logprob in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, logprob)
        return sums

    def generate_until(self, requests: list[Any]) -> list[str]:
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        texts = [""] * len(requests)
        with self._progress("generate", len(requests)) as bar:
            for key, members in groups.items():
                params = _sampling(json.loads(key))
                room = self.max_length - params.max_tokens
                if room < 1:
                    raise ConfigError(
                        f"{params.max_tokens:,} new tokens leave no room for a prompt in "
                        f"{self.max_length:,}.",
                        hint="a larger --max-len, if the model allows it",
                    )
                prompts = {i: self.tok_encode(requests[i].args[0])[-room:] for i in members}
                order = sorted(members, key=lambda i: -len(prompts[i]))
                outputs = self._model.generate([prompts[i] for i in order], params)
                for index, text in zip(order, outputs, strict=True):
                    texts[index] = text
                    self.cache_hook.add_partial("generate_until", requests[index].args, text)
                bar.advance(len(members))
        return texts

    def _special(self, name: str) -> int:
        found = self._model.tokenizer.special_id(name)
        if found is None:
            raise ConfigError(
                f"this model's tokenizer has no {name}, and lm-eval needs one.",
                hint=f"{name} in tokenizer_config.json",
            )
        return found


def _sampling(given: dict[str, Any]) -> SamplingParams:
    """lm-eval's generation arguments. Raises ConfigError for those that have no meaning here."""
    known = dict(normalize_gen_kwargs(given))
    stops = [text for text in known.pop("until") if text]
    tokens = known.pop("max_gen_toks")
    if not known.pop("do_sample", False):
        known["temperature"] = 0.0
    unknown = sorted(set(known) - set(_SAMPLING))
    if unknown:
        raise ConfigError(
            f"the task asks for {', '.join(unknown)}, which the runtime's sampler does not know.",
            cause=f"it knows {', '.join(_SAMPLING)}.",
            hint="another task",
        )
    return SamplingParams(max_tokens=tokens, stop=tuple(stops), seed=0, **known)
