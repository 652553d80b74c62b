"""The only place that prints. stdout carries results, stderr everything else.

A verb uses the module's one `console`: `out` and `show` for results, `info`, `detail`, `warn` for
the rest, `emit` for the JSON envelope. `common_options` gives a verb -q, -v, --debug,
--no-progress, --json and --save; their values live here, so that errors raised anywhere obey them.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

import rich_click as click
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.table import Table

from flexq_ft.errors import ConfigError, FlexQFtError
from flexq_ft.orchestrate.cli.streams import json_for_stdout, named_stdout
from flexq_ft.orchestrate.cli.table_width import fit
from flexq_ft.orchestrate.world import world_from_environment

_F = TypeVar("_F", bound=Callable[..., Any])

SAVE_SUFFIXES = (".json", ".md")
TABLE_SUFFIXES = (*SAVE_SUFFIXES, ".csv")


class Console:
    """Where output goes and how much of it; one object per process."""

    def __init__(self) -> None:
        self.reset([])

    def reset(self, argv: list[str]) -> None:
        """Back to the defaults, for a new command line."""
        self.argv = argv
        world = world_from_environment()
        self.muted = world is not None and world.rank > 0  # under mpirun only rank 0 speaks
        self.quiet = False
        self.verbose = False
        self.debug = False
        self.show_progress = True
        self.json_mode = False
        self.save: list[Path] = []
        self.warnings: list[str] = []

    # The streams are looked up at each use: tests and `redirect_stdout` replace them.
    def rich(self, *, stderr: bool = True) -> RichConsole:
        """A rich console on stderr (or stdout), plain when the stream is not a terminal."""
        stream: TextIO = sys.stderr if stderr else sys.stdout
        # A file or pipe has no edge to fold a result's paths at.
        width = None if stream.isatty() else 120 if stderr else 10_000
        return RichConsole(file=stream, width=width, highlight=False, soft_wrap=False)

    def out(self, text: str, *, end: str = "\n") -> None:
        """A result, as it is, flushed at once (streamed tokens)."""
        if not self.muted:
            with named_stdout():
                sys.stdout.write(text + end)
                sys.stdout.flush()

    def show(self, renderable: RenderableType) -> None:
        """A result that rich lays out: a table, a panel."""
        if not self.muted:
            rich = self.rich(stderr=False)
            if isinstance(renderable, Table):
                rich.width = fit(renderable, rich)
            with named_stdout():
                rich.print(renderable)
                sys.stdout.flush()

    def info(self, text: RenderableType) -> None:
        """Something about the run; silent under -q."""
        if not self.quiet:
            self._to_stderr(text)

    def detail(self, text: RenderableType) -> None:
        """More of it, with -v only."""
        if self.verbose and not self.quiet:
            self._to_stderr(text)

    def warn(self, text: str) -> None:
        """A warning: on stderr, and in the envelope's `warnings`."""
        self.warnings.append(text)
        self.info(f"warning: {text}")

    def prompt(self, text: str) -> None:
        """An invitation to type; on stderr, so that stdout holds the answers only."""
        sys.stderr.write(text)
        sys.stderr.flush()

    def error(self, error: BaseException) -> None:
        """The report of an error; with --debug its traceback first."""
        if self.muted:
            return
        if self.debug:
            sys.stderr.write("".join(traceback.format_exception(error)))
        sys.stderr.write(describe_error(error, debug=self.debug) + "\n")
        sys.stderr.flush()

    def _to_stderr(self, renderable: RenderableType) -> None:
        if self.muted:
            return
        if isinstance(renderable, str):
            sys.stderr.write(renderable + "\n")
            sys.stderr.flush()
        else:
            self.rich().print(renderable)

    def emit(
        self,
        schema: str,
        *,
        config: Mapping[str, Any],
        results: Any,
        error: BaseException | None = None,
        markdown: str | None = None,
        csv: str | None = None,
    ) -> None:
        """Write the envelope: to stdout under --json, and to each --save file.

        schema: name and version, as `flexq-ft/run/1`. markdown, csv: what files of that suffix get.
        """
        if not self.json_mode and not self.save:
            return
        from flexq_ft.orchestrate.envelope import envelope

        document = envelope(
            schema,
            argv=self.argv,
            config=dict(config),
            results=results,
            warnings=self.warnings,
            error=None if error is None else error_to_json(error),
        )
        for path in self.save:
            own = {".md": markdown, ".csv": csv}.get(path.suffix)
            text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
            write_atomically(path, text if own is None else own)
        if self.json_mode:
            self.out(json_for_stdout(document, indent=2))


console = Console()


def write_atomically(path: Path, text: str) -> None:
    """The whole file or nothing; ConfigError if it cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise _unwritable(path, error.strerror or str(error)) from error


def check_writable(path: Path) -> None:
    """Before long work whose result goes into this file; ConfigError if it cannot be made there."""
    if not path.parent.is_dir():
        raise _unwritable(path, f"there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise _unwritable(path, f"the folder {path.parent} is not writable")


def _unwritable(path: Path, cause: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written.", cause=f"{cause}.", hint="name a file in a writable folder"
    )


def describe_error(error: BaseException, *, debug: bool = False) -> str:
    """`error:`, `cause:` and `Try:` lines for any exception."""
    if isinstance(error, FlexQFtError):
        return error.report()
    if isinstance(error, click.UsageError):
        text = f"error: {error.format_message()}"
        if error.ctx is not None:
            text += f"\n  Try:   {error.ctx.command_path} --help"
        return text
    if isinstance(error, click.ClickException):
        return f"error: {error.format_message()}"
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted"
    if isinstance(error, OSError) and error.strerror:
        text = "error: " + (f"{error.filename}: " if error.filename else "") + error.strerror
    else:
        text = f"error: {type(error).__name__}: {error}"
    return text if debug else text + "\n  Try:   the same command with --debug, for the traceback"


def exit_code(error: BaseException) -> int:
    """The exit code that an exception stands for."""
    if isinstance(error, FlexQFtError):
        return error.exit_code
    if isinstance(error, click.ClickException):
        return 2
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return 130
    if isinstance(error, MemoryError):
        return 5
    return 1


def error_to_json(error: BaseException) -> dict[str, Any]:
    """The `error` object of the envelope, and of one failed row."""
    if isinstance(error, FlexQFtError):
        return error.to_json()
    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    is_usage = isinstance(error, click.ClickException)
    return {
        "kind": "ConfigError" if is_usage else type(error).__name__,
        "message": message or describe_error(error),
        "cause": "",
        "try": "",
        "exit_code": exit_code(error),
        "rank": None,
        "host": None,
    }


def _sets(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        setattr(console, name, value)

    return callback


def _saves(
    suffixes: tuple[str, ...],
) -> Callable[[click.Context, click.Parameter, tuple[Path, ...]], None]:
    def callback(ctx: click.Context, parameter: click.Parameter, value: tuple[Path, ...]) -> None:
        for path in value:
            if path.suffix not in suffixes:
                raise click.BadParameter(
                    f"{path} ends in {path.suffix or 'no suffix'}; known: {', '.join(suffixes)}."
                )
            if not console.muted:  # rank 0 writes, and another rank's host may have no such folder
                check_writable(path)
        console.save = list(value)

    return callback


def _set_progress(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    console.show_progress = not value


def common_options(function: _F) -> _F:
    """The options of every verb: group `Output` of its help. None reaches the function."""
    return _output_options(function, SAVE_SUFFIXES)


def table_options(function: _F) -> _F:
    """As common_options, for a verb whose result is a table: it saves .csv too."""
    return _output_options(function, TABLE_SUFFIXES)


def _output_options(function: _F, suffixes: tuple[str, ...]) -> _F:
    options = [
        click.option(
            "--json", is_flag=True, expose_value=False, is_eager=True, callback=_sets("json_mode"),
            panel="Output", help="Write one JSON document to stdout instead of text.",
        ),
        click.option(
            "--save", type=click.Path(dir_okay=False, path_type=Path), multiple=True,
            metavar="FILE", expose_value=False, callback=_saves(suffixes), panel="Output",
            help=f"Also write the result to FILE ({', '.join(suffixes)}). Repeatable.",
        ),
        click.option(
            "-q", "--quiet", is_flag=True, expose_value=False, is_eager=True,
            callback=_sets("quiet"), panel="Output", help="Errors only on stderr.",
        ),
        click.option(
            "-v", "--verbose", is_flag=True, expose_value=False, is_eager=True,
            callback=_sets("verbose"), panel="Output", help="More detail on stderr.",
        ),
        click.option(
            "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_sets("debug"),
            panel="Output", help="Tracebacks with errors.",
        ),
        click.option(
            "--no-progress", is_flag=True, expose_value=False, is_eager=True,
            callback=_set_progress, panel="Output", help="No progress bars.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function
