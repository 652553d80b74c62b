"""RemoteEngine: the engine of ranks that the launcher started."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexq_ft.orchestrate.engine.client import (
    Request,
    Score,
    TokenEvent,
    refuse_if_busy,
    refuse_linear_inputs,
)
from flexq_ft.orchestrate.engine.info import EngineInfo
from flexq_ft.orchestrate.engine.options import EngineOptions
from flexq_ft.orchestrate.launcher import RankGroup
from flexq_ft.orchestrate.wire import error_from_wire


class RemoteEngine:
    """The engine of a RankGroup, with the face of LocalEngine."""

    def __init__(self, options: EngineOptions) -> None:
        self._group = RankGroup(options.tensor_parallel_size)
        try:
            info = self._group.call({"call": "load", "options": asdict(options)})
        except BaseException:
            self._group.close()
            raise
        self._info = EngineInfo(**info)
        self._is_busy = False

    @property
    def info(self) -> EngineInfo:
        return self._info

    def generate(self, requests: Sequence[Request]) -> Generator[list[TokenEvent], None, None]:
        refuse_if_busy(self._is_busy)
        self._is_busy = True
        try:
            self._group.send({"call": "generate", "requests": [asdict(r) for r in requests]})
            yield from self._events()
        finally:
            self._is_busy = False

    def _events(self) -> Generator[list[TokenEvent], None, None]:
        try:
            while True:
                message, _ = self._group.receive()
                if "done" in message:
                    return
                yield [_event_from_wire(event) for event in message["events"]]
        except GeneratorExit:
            if self._group.is_open:
                self._group.send({"call": "cancel_all"})
                while "done" not in self._group.receive()[0]:
                    pass
            raise

    def cancel(self, request_id: int) -> None:
        self._group.send({"call": "cancel", "id": request_id})

    def score(self, texts: Sequence[Sequence[int]], first: Sequence[int]) -> list[Score]:
        refuse_if_busy(self._is_busy)
        asked = {"call": "score", "texts": [list(ids) for ids in texts], "first": list(first)}
        return [Score(**score) for score in self._group.call(asked)]

    def forward(self, ids: Sequence[int]) -> NDArray[np.float32]:
        refuse_if_busy(self._is_busy)
        self._group.send({"call": "forward", "ids": list(ids)})
        message, payload = self._group.receive()
        return np.frombuffer(payload, dtype=np.float32).reshape(message["result"]).copy()

    def linear_inputs(self, ids: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        refuse_linear_inputs(self.info.tensor_parallel_size)
        raise AssertionError("one rank runs in its caller's process")

    def take_step_times(self) -> list[float]:
        refuse_if_busy(self._is_busy)
        return list(self._group.call({"call": "take_step_times"}))

    def step_profile(self, batch: int, context: int) -> list[dict[str, Any]]:
        refuse_if_busy(self._is_busy)
        message = {"call": "step_profile", "batch": batch, "context": context}
        return list(self._group.call(message))

    def close(self) -> None:
        self._group.close()


def _event_from_wire(fields: dict[str, Any]) -> TokenEvent:
    error = fields.pop("error")
    return TokenEvent(**fields, error=None if error is None else error_from_wire(error))
