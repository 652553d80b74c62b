"""Entry point of `flexq-ft`: the group of verbs, and the exit code of whatever happens in them.

Verbs are imported when they are used, so that `flexq-ft --help` is quick. click alone turns Ctrl-C
into code 1 and prints its own errors; here it runs with standalone_mode=False and exceptions are
mapped once, in console.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import rich_click as click

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.cli.console import (
    console,
    describe_error,
    exit_code,
)
from flexq_ft.orchestrate.cli.group import MemberGroup, refuse_unknown_command
from flexq_ft.orchestrate.cli.interrupts import watch_interrupts
from flexq_ft.orchestrate.cli.streams import prepare_streams, silence_stdout

# In the order of the help page, each with its line there.
VERBS = {
    "convert": "Write a checkpoint as FasterTransformer weights, quantised as you choose.",
    "run": "Generate text from a prompt, a file or JSON lines.",
    "chat": "Talk to an instruction-tuned model.",
    "bench": "Time prefill and decode, scheme against scheme, beside the machine's limits.",
    "sweep": "Measure a matrix of models, schemes and sizes; one table of speed and quality.",
    "compare": "Hold two results of sweep or bench against each other; find regressions.",
    "eval": "Accuracy by the engine that serves the model: perplexity, divergence, tasks.",
    "sensitivity": "Which inputs lose most at 6 bits, and the best policy for a budget.",
    "inspect": "Show a model's configuration, sizes and (unpacked) weights; verify hashes.",
    "cache": "List and remove the models that other verbs converted themselves.",
    "doctor": "Say what this machine can and cannot run, and why.",
}

EPILOG = """\
Example:
  flexq-ft run ./llama-7b-hf "The sky is" --scheme flexq --max-tokens 32

Results go to stdout, everything else to stderr. Options are also read from
the environment: FLEXQ_FT_RUN_MAX_TOKENS is run's --max-tokens.
Exit codes: 0 ok, 1 failure or regression, 2 usage or configuration,
3 model or weights, 4 device, MPI or launch, 5 out of memory, 130 interrupted.
"""

RANK_0_SPEAKS_S = 5.0

RICH_HELP = click.RichHelpConfiguration(show_arguments=True, options_panel_title="Other options")


class VerbGroup(click.RichGroup):
    """Finds each verb in the module of its name; a verb without a module does not exist."""

    _for_help = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [v for v in VERBS if importlib.util.find_spec(f"{__package__}.{v}") is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        if self._for_help:
            return click.RichCommand(name=cmd_name, short_help=VERBS[cmd_name])
        command: click.Command = importlib.import_module(f"{__package__}.{cmd_name}").command
        keep_lines(command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        refuse_unknown_command(ctx, args, self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self._for_help = True
        try:
            super().format_options(ctx, formatter)
        finally:
            self._for_help = False

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        keep_lines(self)
        super().format_epilog(ctx, formatter)


def keep_lines(command: click.Command) -> None:
    """Examples and tables of an epilog must not be wrapped as prose."""
    from rich.text import Text

    if isinstance(command.epilog, str):
        command.epilog = Text(command.epilog.replace("\b\n", ""))  # type: ignore[assignment]


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from flexq_ft.orchestrate.envelope import version_line

        console.out(version_line())
        ctx.exit(0)


@click.group(
    name="flexq-ft",
    cls=VerbGroup,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={
        "auto_envvar_prefix": "FLEXQ_FT",
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "rich_help_config": RICH_HELP,
    },
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Show the version, the git commit and the CUDA it was built with.",
)  # fmt: skip
@click.pass_context
def cli(ctx: click.Context) -> int | None:
    """6-bit LLM inference in FasterTransformer's formats: convert, run, measure.

    Beside FlexQ's INT6 (w6ax) the same runtime has FP16, W8A16 and W8A8, for honest comparison.
    """
    if ctx.invoked_subcommand is None:
        console.info(ctx.get_help())
        ctx.exit(2)
    return None


def run_cli(args: Sequence[str]) -> int:
    """Run one command line; returns its exit code and never raises."""
    console.reset(list(args))
    try:
        _refuse_undecodable(args)
        result = cli.main(list(args), prog_name="flexq-ft", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        silence_stdout()
        return 0
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # click met it before us
            silence_stdout()
            return 0
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        return _report(_interrupt_behind(error) or error)


def _refuse_undecodable(args: Sequence[str]) -> None:
    """Names of files that are no text could not stand in results, nor in the files of a model."""
    for argument in args:
        try:
            os.fsencode(argument).decode()
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"the argument {argument!r} is not UTF-8 text.",
                cause=str(error),
                hint="for a file, rename it; for a text, iconv -t UTF-8",
            ) from error


def _interrupt_behind(error: BaseException | None) -> BaseException | None:
    """Ctrl-C while a native module was imported, of which the import makes an ImportError."""
    while isinstance(error, ImportError):
        error = error.__cause__
    return error if isinstance(error, KeyboardInterrupt) else None


def _report(error: BaseException) -> int:
    try:
        console.error(error)
        if console.json_mode or "--json" in console.argv:
            console.json_mode = True
            console.emit(_schema(console.argv), config={}, results=None, error=error)
    except BrokenPipeError:
        silence_stdout()
    except Exception as second:  # the report itself failed, e.g. --save on a full disk
        sys.stderr.write(describe_error(second) + "\n")
    if console.muted:
        # mpirun ends every rank with the first that fails: rank 0, which met the same fault, must
        # have said it by then. Its end ends this wait.
        time.sleep(RANK_0_SPEAKS_S)
    return exit_code(error)


def _schema(argv: Sequence[str]) -> str:
    """Of the document that this command line would have written."""
    verb = next((a for a in argv if a in VERBS), "cli")
    if verb == "cli":
        return "flexq-ft/cli/1"
    module = importlib.import_module(f"{__package__}.{verb}")
    if isinstance(module.command, MemberGroup):
        member = next((a for a in argv if a in module.command.members), None)
        if member is None:
            return f"flexq-ft/{verb}/1"
        module = importlib.import_module(f"{__package__}.{verb}_{member}")
    return str(module.SCHEMA)


def main() -> None:
    """Console script `flexq-ft`."""
    # Ended from outside, too, it ends its ranks and removes its temporary files.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    prepare_streams()
    watch_interrupts()
    code = run_cli(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:  # said by run_cli; what is left must not make the interpreter's exit fail too
        silence_stdout()
    sys.exit(code)
