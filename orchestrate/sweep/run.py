"""Runs the cases of a sweep one after another, each in its own process, and keeps every row."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flexq_ft.errors import ConfigError, LaunchError
from flexq_ft.orchestrate.cli.console import write_atomically
from flexq_ft.orchestrate.sweep.case import case_row, own_options
from flexq_ft.orchestrate.sweep.case_config import Case
from flexq_ft.orchestrate.sweep.command import MODULE, case_arguments
from flexq_ft.orchestrate.sweep.csv_table import to_csv
from flexq_ft.orchestrate.sweep.gpu_memory import GpuMemoryWatch, with_polled
from flexq_ft.orchestrate.sweep.measure import LOADING, TIMED
from flexq_ft.orchestrate.sweep.metrics import joined
from flexq_ft.orchestrate.sweep.plots import plot_rows, require_matplotlib
from flexq_ft.orchestrate.sweep.report import REPORT_NAME, markdown, newest_rows
from flexq_ft.orchestrate.sweep.store import Row, RowStore

CASE_PROCESS = (sys.executable, "-m", MODULE)
STATE_NAME = "quality"
LOGS_NAME = "logs"
STOP_SECONDS = 10.0


class Turn(NamedTuple):
    """One start of one case. Rounds count from 1."""

    round: int
    case: Case


# Told before a case starts (row None), and after it has ended.
Observer = Callable[[int, Turn, Row | None], None]


def turns_of(cases: Sequence[Case], *, rounds: int) -> list[Turn]:
    """Each round starts every case once, in rotated order: what drifts meets all alike."""
    turns = []
    for number in range(1, rounds + 1):
        first = (number - 1) * len(cases) // rounds
        turns += [Turn(number, case) for case in (*cases[first:], *cases[:first])]
    return turns


class SweepRun:
    """One output folder: rows.jsonl, report.md and .csv, plots, quality/ (shared evaluations),
    logs/. Raises ConfigError for plots without matplotlib."""

    def __init__(
        self,
        cases: Sequence[Case],
        folder: Path,
        *,
        title: str,
        rounds: int = 1,
        plots: bool = False,
        cache_dir: Path | None = None,
    ) -> None:
        if plots:
            require_matplotlib()
        self.cases = list(cases)
        self.folder = folder
        self.title = title
        self.rounds = rounds
        self.turns = turns_of(self.cases, rounds=rounds)
        self.total = 0  # turns that the last run had to start,
        self.stopped = 0  # and those that it left for want of time
        self.store = RowStore(folder)
        self._plots = plots
        self._cache_dir = cache_dir

    @property
    def report_path(self) -> Path:
        return self.folder / REPORT_NAME

    def pending(self, *, force: bool = False) -> list[Turn]:
        """Turns without a finished row; all of them with force."""
        done = set() if force else self.store.finished()
        return [turn for turn in self.turns if (turn.case.case_id, turn.round) not in done]

    def run(
        self,
        *,
        force: bool = False,
        seconds: float = math.inf,
        observe: Observer = lambda *_: None,
    ) -> list[Row]:
        """Measure what is pending; returns the rows of this sweep's cases.

        seconds: no turn starts later. A case that failed has no turn in the rounds that follow.
        Also on Ctrl-C, which goes on to the caller, the finished rows stay and the report is
        rebuilt from them. With force, shared evaluations are made anew too.
        """
        if not self.pending(force=force):  # then the folder may be another sweep's
            self.write_report()
            return self.rows()
        with self._own_folder():
            if force:
                shutil.rmtree(self.folder / STATE_NAME, ignore_errors=True)
            try:
                # Asked again: until the folder was this sweep's, another may have added rows.
                self._run_turns(self.pending(force=force), seconds, observe)
            finally:
                self.write_report()
        return self.rows()

    def _run_turns(self, pending: Sequence[Turn], seconds: float, observe: Observer) -> None:
        self.total = len(pending)
        failed: set[str] = set()
        started = time.monotonic()
        for number, turn in enumerate(pending, start=1):
            if turn.case.case_id in failed:
                continue
            if time.monotonic() - started >= seconds:
                rest = pending[number - 1 :]
                self.stopped = sum(turn.case.case_id not in failed for turn in rest)
                break
            observe(number, turn, None)
            row = self._run_turn(turn)
            self.store.append(row)
            if row["error"] is not None:
                failed.add(turn.case.case_id)
            observe(number, turn, row)

    @contextlib.contextmanager
    def _own_folder(self) -> Iterator[None]:
        """Before the first case, whose row would be lost. Raises ConfigError if another sweep has
        the folder, or it cannot be written."""
        try:
            (self.folder / LOGS_NAME).mkdir(parents=True, exist_ok=True)
            lock = self.store.lock()
        except OSError as error:
            raise ConfigError(
                f"the folder {self.folder} cannot be written.",
                cause=f"{error.strerror}.",
                hint="--out FOLDER",
            ) from error
        with lock:
            yield

    def rows(self) -> list[Row]:
        """A row a case, its rounds joined, in the sweep's order; none of cases that never ran."""
        found = self.store.cases()
        return [
            joined(found[case.case_id], rounds=self.rounds)
            for case in self.cases
            if case.case_id in found
        ]

    def other_rows(self) -> list[Row]:
        """Of what the folder has beside this sweep: cases that its file has no longer, or never
        had."""
        own = self.rows()
        ids = {case.case_id for case in self.cases}
        others = (rows for case_id, rows in self.store.cases().items() if case_id not in ids)
        newest = newest_rows([*(joined(rows, rounds=self.rounds) for rows in others), *own])
        return [row for row in newest if row["case_id"] not in ids]

    def write_report(self) -> None:
        """Rebuild the reports, and plots if asked for, from the JSON lines: this sweep's cases in
        its order, then the others."""
        rows = [*newest_rows(self.rows()), *self.other_rows()]
        if rows:
            plots = plot_rows(rows, self.folder) if self._plots else []
            write_atomically(self.report_path, markdown(rows, title=self.title, plots=plots))
            write_atomically(self.report_path.with_suffix(".csv"), to_csv(rows))

    def _run_turn(self, turn: Turn) -> Row:
        case = turn.case
        log = self.folder / LOGS_NAME / f"{case.case_id}-{turn.round}.log"
        options = own_options(state=self.folder / STATE_NAME, cache_dir=self._cache_dir)
        options += ["--parent", str(os.getpid())]
        started = time.monotonic()
        with log.open("wb") as stderr, GpuMemoryWatch(case.device, ranks=case.tp) as watch:
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
                last = _last_line(process, watch)
                process.wait()
            except BaseException:
                _end(process)
                raise
        row = _parsed(last) or case_row(case, {}, error=_lost(process.returncode, log))
        seconds = round(time.monotonic() - started, 3)
        return {**with_polled(row, watch.used_bytes()), "round": turn.round, "seconds": seconds}


def _last_line(process: subprocess.Popen[str], watch: GpuMemoryWatch) -> str:
    """Of stdout, at its end; what the case says before starts and stops the watch."""
    assert process.stdout is not None
    last = ""
    with process.stdout as lines:
        for last in lines:
            if last.strip() == LOADING:
                watch.start()
            elif last.strip() == TIMED:
                watch.stop()
    return last


def _parsed(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
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
