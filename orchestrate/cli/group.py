"""A verb with verbs of its own: `flexq-ft bench latency` is the module bench_latency beside this.

Members are imported when they are used; one without a module does not exist.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import rich_click as click

from flexq_ft.orchestrate.suggest import nearest


def refuse_unknown_command(ctx: click.Context, args: Sequence[str], known: Sequence[str]) -> None:
    """UsageError with the nearest, or all of them, if args start with none of the known."""
    if args and not args[0].startswith("-") and args[0] not in known:
        close = nearest(args[0], known)
        way_out = f"Did you mean '{close}'?" if close else f"There are {', '.join(known)}."
        raise click.UsageError(f"No such command '{args[0]}'. {way_out}", ctx)


class MemberGroup(click.RichGroup):
    """members: their names, in the order of the help page."""

    def __init__(self, *args: Any, members: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.members = members

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in self.members if importlib.util.find_spec(self._module(name))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        from flexq_ft.orchestrate.cli.main import keep_lines

        command: click.Command = importlib.import_module(self._module(cmd_name)).command
        keep_lines(command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        refuse_unknown_command(ctx, args, self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def _module(self, name: str) -> str:
        return f"{__package__}.{self.name}_{name}"
