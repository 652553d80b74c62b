"""Ctrl-C while native code runs: a window that is scored on a CPU may take minutes.

Python raises KeyboardInterrupt only when such a call has ended. A thread says that it waits for
that, and ends the process at another Ctrl-C.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from types import FrameType

from flexq_ft.orchestrate.cli.console import console, exit_code

PATIENCE_S = 1.0
# The thread may see a signal a little later than the handler that it is for.
_SLACK_S = 0.2


class InterruptWatch:
    """For the rest of the process. Made by the main thread, where Ctrl-C is not ignored."""

    handled_at = 0.0  # when a handler of SIGINT last ran

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGINT, self._raise)
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def _raise(number: int, frame: FrameType | None) -> None:
        note_handled()
        signal.default_int_handler(number, frame)

    def _watch(self) -> None:
        came: float | None = None  # of the interrupt that may still wait
        is_said = False
        while True:
            patience = None if came is None else PATIENCE_S
            is_ready = bool(select.select([self._reader], [], [], patience)[0])
            is_handled = came is None or self.handled_at >= came - _SLACK_S
            if is_ready and signal.SIGINT in os.read(self._reader, 64):
                if is_handled:
                    came, is_said = time.monotonic(), False
                elif is_said:
                    os._exit(exit_code(KeyboardInterrupt()))
            elif is_handled:
                came = None
            elif not is_said:
                is_said = True
                console.info("\nstopping when this step has ended; Ctrl-C again ends at once")


def note_handled() -> None:
    """For handlers of SIGINT: the interrupt waits no longer."""
    InterruptWatch.handled_at = time.monotonic()


def watch_interrupts() -> None:
    """InterruptWatch, unless Ctrl-C is ignored, as in the background of a shell."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        InterruptWatch()
