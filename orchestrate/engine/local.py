"""LocalEngine: an engine of this process.

Which sequences run together is decided here: as many as fit, in order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.engine.client import (
    Request,
    Score,
    TokenEvent,
    refuse_if_busy,
    refuse_linear_inputs,
)
from flexq_ft.orchestrate.engine.info import EngineInfo


@dataclass
class _Running:
    request: Request
    started: float
    is_first: bool = True


class LocalEngine:
    """Drives one `_native.Engine` (or what stands for the ranks of a group: worker.Leader)."""

    def __init__(self, native: Any, info: EngineInfo) -> None:
        self._opened = native  # None once it is closed
        self._info = info
        self._waiting: deque[Request] = deque()
        self._running: dict[int, _Running] = {}  # by slot
        self._is_busy = False

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def _native(self) -> Any:
        if self._opened is None:
            raise ConfigError("this LLM is closed.", hint="make a new one")
        return self._opened

    def generate(self, requests: Sequence[Request]) -> Generator[list[TokenEvent], None, None]:
        refuse_if_busy(self._is_busy)
        self._is_busy = True
        self._waiting.extend(requests)
        try:
            while self._waiting or self._running:
                refused = self._admit()
                if refused:
                    yield refused
                if self._running:
                    yield self._step()
        finally:
            self._is_busy = False
            self._waiting.clear()
            for slot in list(self._running):
                self._release(slot)

    def _admit(self) -> list[TokenEvent]:
        """Hand over what fits; when nothing runs the next one must fit or fail."""
        refused = []
        while self._waiting:
            request = self._waiting[0]
            room = self._native.can_admit(len(request.prompt), request.params["max_tokens"])
            if self._running and not room:
                break
            self._waiting.popleft()
            now = time.monotonic()
            try:
                slot = self._native.admit(request.prompt, **request.params)
            except ConfigError as error:
                refused.append(TokenEvent(request.id, -1, 0.0, None, now, now, error=error))
            else:
                self._running[slot] = _Running(request, now)
        return refused

    def _step(self) -> list[TokenEvent]:
        outputs = self._native.step()
        now = time.monotonic()
        peak: int | None = None
        events = []
        for slot, token, logprob, finish in outputs:
            running = self._running[slot]
            first, running.is_first = running.is_first, False
            if peak is None and (first or finish is not None):
                peak = int(self._native.peak_memory_bytes())
            events.append(
                TokenEvent(
                    running.request.id,
                    token,
                    logprob,
                    finish,
                    running.started,
                    now,
                    peak_memory_bytes=peak or 0,
                )
            )
            if finish is not None:
                self._release(slot)
        return events

    def cancel(self, request_id: int) -> None:
        for slot, running in list(self._running.items()):
            if running.request.id == request_id:
                self._release(slot)
        self._waiting = deque(r for r in self._waiting if r.id != request_id)

    def _release(self, slot: int) -> None:
        del self._running[slot]
        if self._opened is not None:
            self._opened.release(slot)

    def score(self, texts: Sequence[Sequence[int]], first: Sequence[int]) -> list[Score]:
        scores = self._native.score_batch([list(ids) for ids in texts], list(first))
        return [Score(np.asarray(p).tolist(), np.asarray(best).tolist()) for p, best in scores]

    def forward(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return np.asarray(self._native.forward(list(ids)), dtype=np.float32)

    def linear_inputs(self, ids: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        refuse_linear_inputs(self._info.tensor_parallel_size)
        return {trace["name"]: trace["x"] for trace in self._native.trace(list(ids))}

    def take_step_times(self) -> list[float]:
        return [float(ms) for ms in self._native.take_step_times()]

    def step_profile(self, batch: int, context: int) -> list[dict[str, Any]]:
        refuse_if_busy(self._is_busy)
        return [dict(node) for node in self._native.step_profile(batch, context)]

    def close(self) -> None:
        self._opened = None
