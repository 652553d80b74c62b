"""One case in a process of its own: `python -m flexq_ft.orchestrate.sweep.case MODEL OPTIONS`.

Prints the case's row as one line of JSON on stdout; a failure is a row too, and the exit code is
that of its error. A sweep starts exactly this, and the `command` of each row is this line; for a
sweep that waits for it (--parent) the events of measure() are lines before the row.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydantic
import rich_click as click

from flexq_ft.errors import ConfigError, InternalError
from flexq_ft.orchestrate.cli.console import console, error_to_json, exit_code
from flexq_ft.orchestrate.envelope import environment
from flexq_ft.orchestrate.sweep.case_config import Case
from flexq_ft.orchestrate.sweep.command import (
    CASE_PARAMETERS,
    MODULE,
    case_arguments,
    case_from_options,
    reproduce_command,
)
from flexq_ft.orchestrate.sweep.measure import measure
from flexq_ft.orchestrate.sweep.session import open_session
from flexq_ft.orchestrate.sweep.store import Row
from flexq_ft.orchestrate.sweep.subject import subject_of


def case_row(case: Case, result: dict[str, Any], *, error: dict[str, Any] | None) -> Row:
    """A row; a failed case has its error, and null where nothing was measured."""
    return {
        "case_id": case.case_id,
        "config": case.model_dump(mode="json"),
        **{name: result.get(name) for name in ("model", "machine", "metrics", "quality")},
        "flags": result.get("flags", []),
        "error": error,
        "command": reproduce_command(case),
        "environment": environment(),
    }


def make_baseline(case: Case, *, state: Path, cache_dir: Path | None) -> None:
    """Evaluate the baseline in its own process, into the state folder."""
    options = [*own_options(state=state, cache_dir=cache_dir), "--quality-only"]
    done = subprocess.run(
        [sys.executable, "-m", MODULE, *case_arguments(case), *options],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        cause = _last_error(done.stdout) or f"its process ended with code {done.returncode}"
        raise InternalError(f"the baseline {case.label()} failed.", cause=cause)


def own_options(*, state: Path, cache_dir: Path | None) -> list[str]:
    """Options that say where to work, not what to measure; no part of a case."""
    options = ["--state", str(state)]
    return options if cache_dir is None else [*options, "--cache-dir", str(cache_dir)]


def end_with(parent: int) -> None:
    """When the sweep is killed, end this process and the ranks that it started: they would hold
    the device that the resumed sweep needs."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _last_error(stdout: str) -> str:
    try:
        error = json.loads(stdout.splitlines()[-1])["error"]
    except (IndexError, ValueError, KeyError, TypeError):
        return ""
    return f"{error['kind']}: {error['message']} {error['cause']}".strip()


def run_case(
    case: Case,
    *,
    state: Path,
    cache_dir: Path | None,
    observe: Callable[[str], None],
    quality_only: bool,
) -> tuple[Row, int]:
    """The row of a case and the exit code it stands for; only Ctrl-C gets through."""
    try:
        subject = subject_of(case, cache_dir)
        result = measure(
            case,
            state=state,
            open_session=lambda case: open_session(case, subject),
            make_baseline=lambda base: make_baseline(base, state=state, cache_dir=cache_dir),
            observe=observe,
            quality_only=quality_only,
        )
    except Exception as error:
        console.error(error)
        return case_row(case, {}, error=error_to_json(error)), exit_code(error)
    return case_row(case, result, error=None), 0


@click.command(
    params=[
        *CASE_PARAMETERS,
        click.Option(["--quality-only"], is_flag=True, help="Leave the timed requests out."),
        click.Option(
            ["--state"],
            type=click.Path(file_okay=False, path_type=Path),
            help="Where evaluations are shared; without it they are made anew.",
        ),
        click.Option(
            ["--cache-dir"],
            type=click.Path(file_okay=False, path_type=Path),
            help="Where models converted on the fly are kept.",
        ),
        click.Option(["--parent"], type=int, help="Tell it of events; end when it has ended."),
    ]
)
def command(
    quality_only: bool,
    state: Path | None,
    cache_dir: Path | None,
    parent: int | None,
    **options: Any,
) -> int:
    """Measure one case of a sweep and print its row as JSON."""
    if parent is not None:
        end_with(parent)
    try:
        case = case_from_options(options)
    except pydantic.ValidationError as error:
        raise ConfigError("not a case of a sweep.", cause=str(error)) from error
    with tempfile.TemporaryDirectory() as scratch:
        row, code = run_case(
            case,
            state=state or Path(scratch),
            cache_dir=cache_dir,
            observe=console.out if parent is not None else lambda event: None,
            quality_only=quality_only,
        )
    console.out(json.dumps(row, ensure_ascii=False, allow_nan=False))
    return code


def main(arguments: Sequence[str]) -> int:
    """Run one case; returns the exit code of its error."""
    try:
        result: int = command.main(
            [*arguments], prog_name=f"python -m {MODULE}", standalone_mode=False
        )
        return result
    except (Exception, KeyboardInterrupt) as error:
        console.error(error)
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
