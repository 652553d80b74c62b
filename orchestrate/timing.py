"""Times of one request of several sequences, and the prompts it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from flexq_ft.orchestrate.engine.client import TokenEvent


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One request of `batch` sequences. decode and tpot are None with one output token."""

    prefill_tok_s: float
    decode_tok_s: float | None
    ttft_ms: float
    tpot_ms: float | None


def batch_timing(events: Sequence[TokenEvent], *, prompt_tokens: int) -> Timing:
    """Prefill lasts until every sequence has its first token; decode is what comes after.

    Long batches are prefilled in chunks, beside which sequences that are ready already decode;
    those tokens count in neither rate.
    """
    for event in events:
        if event.error is not None:
            raise event.error
    started = min(event.started for event in events)
    first: dict[int, float] = {}
    for event in events:
        first.setdefault(event.id, event.time)
    prefilled = max(first.values())
    later = [event.time for event in events if event.time > prefilled]
    decode_seconds = max(later) - prefilled if later else None
    outputs = len(events) / len(first)
    return Timing(
        prefill_tok_s=prompt_tokens / (prefilled - started),
        decode_tok_s=len(later) / decode_seconds if decode_seconds else None,
        ttft_ms=1e3 * (prefilled - started),
        tpot_ms=1e3 * decode_seconds / (outputs - 1) if decode_seconds else None,
    )


def token_times_ms(events: Sequence[TokenEvent]) -> list[float]:
    """From the first prompt handed over until every sequence has its 1st, 2nd, … token."""
    started = min(event.started for event in events)
    count: dict[int, int] = {}
    times: list[float] = []
    for event in events:
        at = count[event.id] = count.get(event.id, 0) + 1
        if at > len(times):
            times.append(0.0)
        times[at - 1] = max(times[at - 1], 1e3 * (event.time - started))
    return times


def decode_steps_ms(events: Sequence[TokenEvent]) -> list[float]:
    """From the tokens of one step to those of the next, once every sequence has its first."""
    first: dict[int, float] = {}
    for event in events:
        first.setdefault(event.id, event.time)
    prefilled = max(first.values())
    times = sorted({event.time for event in events if event.time >= prefilled})
    return [1e3 * (later - earlier) for earlier, later in pairwise(times)]


def random_prompts(
    vocab_size: int, *, batch: int, tokens: int, seed: Sequence[int]
) -> list[list[int]]:
    """Ids, different for every sequence and every seed, the same on every run."""
    generator = np.random.default_rng(list(seed))
    prompts: list[list[int]] = generator.integers(0, vocab_size, (batch, tokens)).tolist()
    return prompts
