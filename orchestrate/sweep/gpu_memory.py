"""Peak device memory of a case as its parent sees it: the context and all libraries are in it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

from flexq_ft.orchestrate.gpu_state import free_memory
from flexq_ft.orchestrate.sweep.store import Row

PERIOD_SECONDS = 0.01


class GpuMemoryWatch:
    """Polls the free bytes of a case's GPUs from start to stop; entered before its process begins.

    device, ranks: of the case; `auto` is taken for the first GPUs, and no use of them shows as
    little memory. Without nvidia-ml-py, a driver or a GPU it watches nothing.
    """

    def __init__(self, device: str, *, ranks: int) -> None:
        _, _, index = device.partition(":")
        first = int(index or 0)
        self._gpus = [] if device == "cpu" else list(range(first, first + ranks))
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._read: Callable[[], list[int]] | None = None
        self._before: list[int] = []
        self._used: int | None = None

    def __enter__(self) -> GpuMemoryWatch:
        if self._gpus:
            try:
                read = self._stack.enter_context(free_memory(self._gpus))
                self._before = read()
            except Exception:  # absent or refused: the case's own figures are all there is
                return self
            self._read = read
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """What was before does not count, as the model of a baseline."""
        if self._read is not None:
            thread = threading.Thread(target=self._poll, args=(self._read,), daemon=True)
            thread.start()
            self._stack.callback(thread.join)
            self._stack.callback(self._stop.set)

    def stop(self) -> None:
        """What follows does not count. Does nothing the second time."""
        self._stack.close()

    def used_bytes(self) -> int | None:
        """Free memory on entry less its minimum from start to stop, of all GPUs together; None:
        not known."""
        return self._used

    def _poll(self, read: Callable[[], list[int]]) -> None:
        used = [0] * len(self._before)
        try:
            while not self._stop.wait(PERIOD_SECONDS):
                now = read()
                used = [max(u, b - n) for u, b, n in zip(used, self._before, now, strict=True)]
        except Exception:  # no longer answered: half a run's figure would be too small
            return
        self._used = sum(used)


def with_polled(row: Row, polled: int | None) -> Row:
    """The row of a case on GPUs with the larger of the process's peak and the polled one.

    Without a polled one it is flagged `unpolled`: contexts and libraries are not in the figure.
    """
    metrics = row["metrics"]
    if metrics is None or not row["machine"]["device"].startswith("cuda"):
        return row
    if polled is None:
        return {**row, "flags": [*row["flags"], "unpolled"]}
    memory = {**metrics["memory_bytes"], "polled": polled}
    peak = max(metrics["peak_memory_bytes"], polled)
    return {**row, "metrics": {**metrics, "peak_memory_bytes": peak, "memory_bytes": memory}}
