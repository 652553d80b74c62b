"""EngineClient: what the layers above need of an engine, and what goes in and comes out.

`LocalEngine` drives `_native.Engine` in this process; `RemoteEngine` has the same face over a
socket.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flexq_ft.errors import ConfigError, FlexQFtError
from flexq_ft.orchestrate.engine.info import EngineInfo


@dataclass(frozen=True)
class Request:
    """One prompt; params are the engine's sampling fields. id is the caller's."""

    id: int
    prompt: list[int]
    params: dict[str, Any]


@dataclass(frozen=True)
class TokenEvent:
    """One token of one request, or the error that ended it. Times in seconds, monotonic clock."""

    id: int
    token: int
    logprob: float
    finish: str | None
    started: float  # when the prompt was handed to the engine
    time: float  # when the token was on the host
    # Of all ranks together, so far; with the first and the last token of a request.
    peak_memory_bytes: int = 0
    error: FlexQFtError | None = None


@dataclass(frozen=True)
class Score:
    """Of a sequence's tokens from one on: log-probability of each, and the most likely id."""

    logprobs: list[float]
    argmax: list[int]


class EngineClient(Protocol):
    """An engine, open until `close`. One call at a time; `generate` is one until it ends."""

    @property
    def info(self) -> EngineInfo: ...

    def generate(self, requests: Sequence[Request]) -> Generator[list[TokenEvent], None, None]:
        """Events of all requests, step by step. Closing the generator stops them all."""

    def cancel(self, request_id: int) -> None:
        """Stop one request of the running generate; later events of it may be ignored."""

    def score(self, texts: Sequence[Sequence[int]], first: Sequence[int]) -> list[Score]:
        """Of each text's ids from its `first` on; there is nothing before token 0. Texts run side
        by side, as many as the engine's batch and prefill_tokens allow."""

    def forward(self, ids: Sequence[int]) -> NDArray[np.float32]: ...

    def linear_inputs(self, ids: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """[tokens, k] of every linear, by name, in the model's order; of one rank only."""

    def take_step_times(self) -> list[float]:
        """Milliseconds of each step since the last call, on rank 0's device (or by its clock)."""

    def step_profile(self, batch: int, context: int) -> list[dict[str, Any]]:
        """One decode step, node by node: name, layer, ms, bytes; of rank 0."""

    def close(self) -> None: ...


def refuse_if_busy(is_busy: bool) -> None:
    """An engine serves one generate at a time: events of two would be mixed up."""
    if is_busy:
        raise ConfigError(
            "this LLM is at work: a stream of it is still open, or another thread uses it.",
            cause="one LLM runs one generate or stream at a time.",
            hint="read the stream to its end, close it, or give all prompts to one generate",
        )


def refuse_linear_inputs(ranks: int) -> None:
    """A rank has a part of some inputs only."""
    if ranks > 1:
        raise ConfigError(
            f"the inputs of linears are shown on one rank, and there are {ranks}.", hint="--tp 1"
        )
