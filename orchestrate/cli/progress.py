"""Progress on stderr: a rich bar on a terminal, one plain line at each 10 % elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from flexq_ft.orchestrate.cli.console import console

PATIENCE_S = 1.0  # what takes less shows no bar, where that is said


class ProgressBar(Protocol):
    """What a long job calls as it goes."""

    def advance(self, amount: int, label: str = "") -> None:
        """amount more of the total are done; label: what is being worked on."""


class _NoProgress:
    def advance(self, amount: int, label: str = "") -> None:
        pass


class _PlainLines:
    def __init__(self, description: str, total: int, *, is_bytes: bool, start: float) -> None:
        self._description = description
        self._total = max(total, 1)
        self._is_bytes = is_bytes
        self._done = 0
        self._shown = 0
        self._start = start

    def advance(self, amount: int, label: str = "") -> None:
        self._done += amount
        tenth = min(10, 10 * self._done // self._total)
        if tenth > self._shown:
            self._shown = tenth
            seconds = max(time.monotonic() - self._start, 1e-9)
            left = seconds * max(self._total - self._done, 0) / max(self._done, 1)
            console.info(
                f"{self._description}: {10 * tenth} % ({self._amount(self._done)} of "
                f"{self._amount(self._total)}, {self._amount(int(self._done / seconds))}/s, "
                f"{left:.0f} s left)"
            )

    def _amount(self, value: int) -> str:
        return f"{value / 1e6:,.1f} MB" if self._is_bytes else f"{value:,}"


@contextmanager
def progress(
    description: str, total: int, *, is_bytes: bool = False, start: float | None = None
) -> Iterator[ProgressBar]:
    """`with progress("writing", total=size, is_bytes=True) as bar: bar.advance(n, name)`.

    start: when the work began, by time.monotonic(), if that was before now."""
    rich_console = console.rich()
    if console.quiet or not console.show_progress or total <= 0:
        yield _NoProgress()
    elif not rich_console.is_terminal:
        start = time.monotonic() if start is None else start
        yield _PlainLines(description, total, is_bytes=is_bytes, start=start)
    else:
        with _rich_progress(description, total, is_bytes=is_bytes) as bar:
            yield bar


@contextmanager
def _rich_progress(description: str, total: int, *, is_bytes: bool) -> Iterator[ProgressBar]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if is_bytes else [MofNCompleteColumn()]
    )
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *amount,
        TimeRemainingColumn(),
        TextColumn("{task.fields[label]}"),
        console=console.rich(),
        transient=True,
    )
    task = bar.add_task(description, total=total, label="")

    class Bar:
        def advance(self, amount: int, label: str = "") -> None:
            bar.update(task, advance=amount, label=label)

    with bar:
        yield Bar()


class _SlowWork:
    """Bytes of what has begun, as a bar once it has taken a moment: small models show none."""

    def __init__(self, description: str, *, patience_s: float) -> None:
        self._description = description
        self._patience_s = patience_s
        self._start = time.monotonic()
        self._stack = ExitStack()
        self._bar: ProgressBar | None = None
        self._shown = 0

    def reach(self, done: int, total: int, label: str = "") -> None:
        if self._bar is None:
            if time.monotonic() - self._start < self._patience_s:
                return
            bar = progress(self._description, total, is_bytes=True, start=self._start)
            self._bar = self._stack.enter_context(bar)
        self._bar.advance(done - self._shown, label)
        self._shown = done

    def close(self) -> None:
        self._stack.close()


class ConversionProgress:
    """A conversion (converter.progress.ProgressSink), and a calibration before it."""

    def __init__(self, *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._work: _SlowWork | None = None
        self._done = self._total = 0

    def start(self, *, task: str, total_bytes: int, total_tensors: int) -> None:
        self._work = _SlowWork(task, patience_s=self._patience_s)
        self._done, self._total = 0, total_bytes

    def advance(self, *, tensor: str, source_bytes: int) -> None:
        self._done += source_bytes
        if self._work is not None:
            self._work.reach(self._done, self._total, tensor)

    def finish(self) -> None:
        if self._work is not None:
            self._work.close()


class LoadProgress:
    """The bytes of a load. It begins with the first call: a conversion may come before it."""

    def __init__(self, description: str, *, patience_s: float = PATIENCE_S) -> None:
        self._description = description
        self._patience_s = patience_s
        self._work: _SlowWork | None = None

    def __enter__(self) -> LoadProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._work is not None:
            self._work.close()

    def __call__(self, done: int, total: int) -> None:
        if self._work is None:
            self._work = _SlowWork(self._description, patience_s=self._patience_s)
        self._work.reach(done, total)
