"""Runs the cases of a sweep one after another, each in its own process, and keeps every row."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flexq_ft.errors import LaunchError
from flexq_ft.orchestrate.cli.console import write_atomically
from flexq_ft.orchestrate.sweep.case import case_row, own_options
from flexq_ft.orchestrate.sweep.command import MODULE, case_arguments
from flexq_ft.orchestrate.sweep.plan import Case
from flexq_ft.orchestrate.sweep.report import REPORT_NAME, markdown, newest_rows
from flexq_ft.orchestrate.sweep.store import Row, RowStore

CASE_PROCESS = (sys.executable, "-m", MODULE)
STATE_NAME = "quality"
LOGS_NAME = "logs"
STOP_SECONDS = 10.0

# Told before a case starts (row None), and after it has ended.
Observer = Callable[[int, Case, Row | None], None]


class SweepRun:
    """One output folder: rows.jsonl, report.md, quality/ (shared evaluations), logs/ per case."""

    def __init__(
        self,
        cases: Sequence[Case],
        folder: Path,
        *,
        title: str,
        cache_dir: Path | None = None,
    ) -> None:
        self.cases = list(cases)
        self.folder = folder
        self.title = title
        self.store = RowStore(folder)
        self._cache_dir = cache_dir

    @property
    def report_path(self) -> Path:
        return self.folder / REPORT_NAME

    def pending(self, *, force: bool = False) -> list[Case]:
        """Cases without a finished row; all of them with force."""
        done = set() if force else self.store.finished()
        return [case for case in self.cases if case.case_id not in done]

    def run(self, *, force: bool = False, observe: Observer = lambda *_: None) -> list[Row]:
        """Measure what is pending; returns the rows of this sweep's cases.

        Also on Ctrl-C, which goes on to the caller, the finished rows stay and the report is
        rebuilt from them. With force, shared evaluations are made anew too.
        """
        pending = self.pending(force=force)
        if force:
            shutil.rmtree(self.folder / STATE_NAME, ignore_errors=True)
        try:
            for number, case in enumerate(pending, start=1):
                observe(number, case, None)
                row = self._run_case(case)
                self.store.append(row)
                observe(number, case, row)
        finally:
            self.write_report()
        return self.rows()

    def rows(self) -> list[Row]:
        """The rows of this sweep's cases, in its order; cases that never ran have none."""
        found = {row["case_id"]: row for row in self.store.load()}
        return [found[case.case_id] for case in self.cases if case.case_id in found]

    def write_report(self) -> None:
        """Rebuild the Markdown report from the JSON lines."""
        rows = newest_rows(self.store.load())
        if rows:
            write_atomically(self.report_path, markdown(rows, title=self.title))

    def _run_case(self, case: Case) -> Row:
        log = self.folder / LOGS_NAME / f"{case.case_id}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        options = own_options(state=self.folder / STATE_NAME, cache_dir=self._cache_dir)
        started = time.monotonic()
        with log.open("wb") as stderr:
            # A session of its own: Ctrl-C reaches the sweep alone, which then ends the case and
            # whatever ranks it has started.
            process = subprocess.Popen(
                [*CASE_PROCESS, *case_arguments(case), *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
            try:
                stdout, _ = process.communicate()
            except BaseException:
                _end(process)
                raise
        row = _parsed(stdout) or case_row(case, {}, error=_lost(process.returncode, log))
        return {**row, "seconds": round(time.monotonic() - started, 3)}


def _parsed(stdout: str) -> Row | None:
    lines = stdout.splitlines()
    try:
        row = json.loads(lines[-1])
    except (IndexError, ValueError):
        return None
    return row if isinstance(row, dict) and "case_id" in row else None


def _lost(returncode: int, log: Path) -> dict[str, Any]:
    """The error of a case whose process ended without a row."""
    how = f"exit code {returncode}"
    if returncode < 0:
        how = f"signal {-returncode} ({signal.strsignal(-returncode)})"
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    hint = "less memory: a smaller batch or model" if returncode == -signal.SIGKILL else ""
    return LaunchError(
        f"the process of this case ended by {how}, without a result.",
        cause=last[0] if last else "it wrote nothing.",
        hint=hint or f"the row's command, with {log} for what it wrote",
    ).to_json()


def _end(process: subprocess.Popen[str]) -> None:
    """Interrupt the case's whole session, then end it if it does not go."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
