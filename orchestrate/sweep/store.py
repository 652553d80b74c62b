"""Rows of a sweep as JSON lines: appended one by one, so that an interruption loses none."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from flexq_ft.errors import ConfigError

ROWS_NAME = "rows.jsonl"
Row = dict[str, Any]
_KEYS = {"config", "model", "machine", "metrics", "quality", "flags", "error", "environment"}


class RowStore:
    """The JSON lines of one output folder. The last row of a case's round is what counts."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ROWS_NAME

    def load(self) -> list[Row]:
        """All rows that count, in the order of the lines; none if there is no file yet.

        A last line without its end is what a killed process left: it is skipped, and the next
        append replaces it. Any other broken line raises ConfigError.
        """
        rows: dict[tuple[str, int], Row] = {}
        for number, line in enumerate(self._complete_lines(), start=1):
            try:
                row = json.loads(line)
                if missing := _KEYS - row.keys():
                    raise KeyError(min(missing))
                key = row["case_id"], row["round"]
                rows.pop(key, None)  # or the row would stand where its case first did
                rows[key] = row
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ConfigError(
                    f"{self.path}:{number}: not a row of a sweep.",
                    cause=f"{type(error).__name__}: {error}",
                    hint="remove that line, or name another --out",
                ) from error
        return list(rows.values())

    def lock(self) -> BinaryIO:
        """Open until the last row is appended: two sweeps would cut off each other's rows.

        Raises ConfigError if another one has it, OSError if the file cannot be made.
        """
        file = self.path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ConfigError(
                f"another sweep is writing {self.path}.",
                hint="wait for it, end it, or name another --out",
            ) from error
        return file

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row, on disk when this returns."""
        text = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = sum(len(line) + 1 for line in self._complete_lines())
        with self.path.open("ab") as file:
            file.truncate(kept)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def cases(self) -> dict[str, list[Row]]:
        """The rows of each case_id, in the order of its rounds."""
        found: dict[str, list[Row]] = {}
        for row in sorted(self.load(), key=lambda row: int(row["round"])):
            found.setdefault(row["case_id"], []).append(row)
        return found

    def finished(self) -> set[tuple[str, int]]:
        """The (case_id, round) whose row has no error."""
        rows = self.load()
        return {(row["case_id"], row["round"]) for row in rows if row.get("error") is None}

    def _complete_lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        return self.path.read_bytes().split(b"\n")[:-1]
