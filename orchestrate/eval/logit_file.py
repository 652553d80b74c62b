"""Logits of many windows in a temporary file, so that two models need not be in memory together."""

from __future__ import annotations

import shutil
import tempfile
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flexq_ft.errors import ConfigError


class LogitFile:
    """Windows [tokens, vocab] in float32: all written first, then read in the same order.

    The file has no name, so that it goes with the process however that ends.
    """

    def __init__(self, *, windows: int, tokens: int, vocab: int) -> None:
        """Raises ConfigError if the temporary folder has not the room."""
        self._shape = (tokens, vocab)
        needed = 4 * windows * tokens * vocab
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if needed > free:
            # Half of the room is left to others; of less than a window's, nothing can be made.
            fitting = windows * free // (2 * needed)
            few = f"--max-windows {fitting}" if fitting else "a smaller --window"
            raise ConfigError(
                f"the logits of {windows} windows need {needed / 1e9:,.1f} GB in {folder}, which "
                f"has {free / 1e9:,.1f} GB.",
                cause=f"a window has {tokens:,} tokens, and the vocabulary {vocab:,}.",
                hint=f"{few}, or TMPDIR=FOLDER on a larger disk",
            )
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed with this object
        self._is_reading = False

    def __enter__(self) -> LogitFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, logits: NDArray[np.float32]) -> None:
        if logits.shape != self._shape:
            raise AssertionError(f"logits {logits.shape} in a file of {self._shape}")
        np.ascontiguousarray(logits, dtype=np.float32).tofile(self._file)

    def read(self) -> NDArray[np.float32]:
        if not self._is_reading:
            self._file.seek(0)
            self._is_reading = True
        count = self._shape[0] * self._shape[1]
        return np.fromfile(self._file, np.float32, count).reshape(self._shape)
