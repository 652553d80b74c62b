"""Driving an engine to the end of a list of prompts, as its users do."""

from __future__ import annotations

from collections import deque
from typing import Any


def generate(
    engine: Any,
    prompts: list[list[int]],
    params: dict[str, Any] | list[dict[str, Any]],
    *,
    logprobs: bool = False,
) -> list[Any]:
    """Of each prompt its tokens, or (token, log-probability) pairs. As many run at once as fit."""
    each = params if isinstance(params, list) else [params] * len(prompts)
    waiting = deque(range(len(prompts)))
    running: dict[int, int] = {}
    out: list[list[Any]] = [[] for _ in prompts]
    while waiting or running:
        while waiting:
            index = waiting[0]
            if not engine.can_admit(len(prompts[index]), each[index].get("max_tokens", 128)):
                break
            running[engine.admit(prompts[index], **each[index])] = waiting.popleft()
        for slot, token, logprob, finish in engine.step():
            out[running[slot]].append((token, logprob) if logprobs else token)
            if finish is not None:
                engine.release(slot)
                del running[slot]
    return out


def greedy(engine: Any, prompt: list[int], tokens: int) -> list[int]:
    return generate(engine, [prompt], {"max_tokens": tokens, "ignore_eos": True})[0]
