"""A loaded model as an evaluation needs it (perplexity.Scorer), over the Python API."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.api import LLM
from flexq_ft.orchestrate.sampling import SamplingParams
from flexq_ft.orchestrate.tokenizer import Tokenizer, why_no_tokenizer


class RuntimeScorer:
    """Scores ids with the runtime's engine, on one rank or several."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self.max_positions = llm.info.max_len

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises ConfigError if the model has none."""
        if self._llm.tokenizer is None:
            raise ConfigError(
                "this model has no tokenizer, so it cannot be evaluated on a text.",
                cause=why_no_tokenizer(self._llm.info.model_dir),
                hint="convert the model again, from a folder with its tokenizer",
            )
        return self._llm.tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def score(self, ids: Sequence[int], /, first: int = 1) -> tuple[list[float], list[int]]:
        """Of the tokens from `first` on."""
        return self.score_batch([ids], [first])[0]

    def score_batch(
        self, texts: Sequence[Sequence[int]], first: Sequence[int], /
    ) -> list[tuple[list[float], list[int]]]:
        """The same of several, side by side as the engine's batch allows."""
        return [
            ([value for value in scored.logprobs if value is not None], scored.argmax)
            for scored in self._llm.score(texts, first=first)
        ]

    def logits(self, ids: Sequence[int], /) -> NDArray[np.float32]:
        """[tokens, vocab]."""
        return np.asarray(self._llm.forward_logits(list(ids)), dtype=np.float32)

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[str]:
        """As many together as the engine's batch holds."""
        return [result.outputs[0].text or "" for result in self._llm.generate(prompts, params)]
