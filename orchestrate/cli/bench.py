"""`flexq-ft bench`: measurements. Each of them is a module of its own, found when it is used."""

from __future__ import annotations

import importlib
import importlib.util

import rich_click as click

# name -> the line of the help page; its module is bench_NAME beside this one.
MEASUREMENTS = {
    "latency": "Prefill and decode of a model, scheme against scheme, beside the memory's limit.",
    "gemm": "The 6-bit products alone, beside cuBLASLt.",
    "tune": "Choose the fastest GPU product for each shape of a model, and write the table.",
}

EPILOG = """\
Example:
  flexq-ft bench latency --shape llama-7b --synthetic-weights --scheme fp16,w8a8
"""


class BenchGroup(click.RichGroup):
    """A measurement without a module does not exist."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in MEASUREMENTS if importlib.util.find_spec(_module(name))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        from flexq_ft.orchestrate.cli.main import keep_lines

        command: click.Command = importlib.import_module(_module(cmd_name)).command
        keep_lines(command)
        return command


def _module(name: str) -> str:
    return f"{__package__}.bench_{name}"


@click.group("bench", cls=BenchGroup, epilog=EPILOG)
def command() -> None:
    """Measure: how fast, and how near to what this machine can do."""
