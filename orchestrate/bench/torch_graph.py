"""TorchGraph: launches of a package for torch, captured once and timed when they are replayed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module


class TorchGraph:
    """launch(0), launch(1), ... captured on torch's stream; replays are timed by events."""

    def __init__(self, launches: int, launch: Callable[[int], None]) -> None:
        cuda = import_module("torch").cuda
        self._launches = launches
        self._graph = cuda.CUDAGraph()
        with cuda.graph(self._graph):
            for i in range(launches):
                launch(i)
        self._begin = cuda.Event(enable_timing=True)
        self._end = cuda.Event(enable_timing=True)

    def replay(self, times: int = 1) -> float:
        self._begin.record()
        for _ in range(times):
            self._graph.replay()
        self._end.record()
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) * 1000 / self._launches / times
