"""Times of one request of several sequences, and the prompts it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flexq_ft.orchestrate.engine import TokenEvent


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


def random_prompts(
    vocab_size: int, *, batch: int, tokens: int, seed: Sequence[int]
) -> list[list[int]]:
    """Ids, different for every sequence and every seed, the same on every run."""
    generator = np.random.default_rng(list(seed))
    prompts: list[list[int]] = generator.integers(0, vocab_size, (batch, tokens)).tolist()
    return prompts
