"""Ctrl-C while native code runs: a window that is scored on a CPU may take minutes.

Python raises KeyboardInterrupt only when such a call has ended. A thread says that it waits for
that, and ends the process at another Ctrl-C.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from types import FrameType
from typing import ClassVar

from flexq_ft.orchestrate.cli.console import console, exit_code

PATIENCE_S = 1.0
_HANDLED = 0  # in the pipe among signals, of which none has this number


class InterruptWatch:
    """For the rest of the process. Made by the main thread, where Ctrl-C is not ignored.

    A pipe has each signal when it comes and each handler when it runs, in this order, however late
    the thread reads them.
    """

    pipe: ClassVar[int | None] = None

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        InterruptWatch.pipe = writer
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGINT, self._raise)
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def _raise(number: int, frame: FrameType | None) -> None:
        note_handled()
        signal.default_int_handler(number, frame)

    def _watch(self) -> None:
        waits = is_said = False
        while True:
            patience = PATIENCE_S if waits and not is_said else None
            if not select.select([self._reader], [], [], patience)[0]:
                is_said = True
                console.info("\nstopping when this step has ended; Ctrl-C again ends at once")
                continue
            for event in os.read(self._reader, 64):
                if event == _HANDLED:
                    waits = is_said = False
                elif event == signal.SIGINT and is_said:
                    os._exit(exit_code(KeyboardInterrupt()))
                elif event == signal.SIGINT:
                    waits = True


def note_handled() -> None:
    """For handlers of SIGINT: the interrupt waits no longer."""
    if InterruptWatch.pipe is not None:
        os.write(InterruptWatch.pipe, bytes([_HANDLED]))


def watch_interrupts() -> None:
    """InterruptWatch, unless Ctrl-C is ignored, as in the background of a shell."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        InterruptWatch()
