"""How a conversion tells how far it is. The terminal's form lives in orchestrate/cli."""

from __future__ import annotations

from typing import Protocol

__all__ = ["ProgressSink", "SilentProgress"]


class ProgressSink(Protocol):
    """Called from worker threads, one call at a time (the converter holds a lock)."""

    def start(self, *, task: str, total_bytes: int, total_tensors: int) -> None:
        """Once with the task `converting`, and before that with `calibrating` if that is done.
        Bytes are those of the source tensors that are still to be converted, or to be run."""

    def advance(self, *, tensor: str, source_bytes: int) -> None:
        """A tensor is done: its files are complete."""

    def finish(self) -> None:
        """After each start, also after an error."""


class SilentProgress:
    """Says nothing."""

    def start(self, *, task: str, total_bytes: int, total_tensors: int) -> None:
        pass

    def advance(self, *, tensor: str, source_bytes: int) -> None:
        pass

    def finish(self) -> None:
        pass
