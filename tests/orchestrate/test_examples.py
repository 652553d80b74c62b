"""Every command that README, docs and help show is one that the command line takes."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from flexq_ft.orchestrate.cli import sensitivity_options
from flexq_ft.orchestrate.cli.main import VERBS, cli
from tests.orchestrate.conftest import REPO

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]


def commands_in(text: str) -> Iterator[str]:
    """Lines of `flexq-ft …`, continued ones joined, up to a comment, a pipe or a remark."""
    for line in text.replace("\\\n", " ").splitlines():
        if re.match(r" *flexq-ft ", line):
            words = shlex.shlex(line, posix=True, punctuation_chars="|<>()")
            words.whitespace_split = True
            yield shlex.join(itertools.takewhile(lambda word: word[0] not in "|<>(", words))


def fenced(page: Path) -> str:
    return "\n".join(re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))


def leaves(command: click.Command, context: click.Context) -> Iterator[click.Command]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            member = command.get_command(context, name)
            assert member is not None
            yield member
            yield from leaves(member, context)


def in_help() -> str:
    context = click.Context(cli)
    return "\n".join(str(command.epilog or "") for command in [cli, *leaves(cli, context)])


COMMANDS = sorted({c for text in [*map(fenced, PAGES), in_help()] for c in commands_in(text)})


def test_every_verb_has_an_example() -> None:
    shown = {command.split()[1] for command in COMMANDS}
    assert set(VERBS) <= shown


@pytest.mark.parametrize("text", COMMANDS)
def test_an_example_is_taken(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its files are not here.
    monkeypatch.setattr(click.Path, "convert", lambda self, value, *_: Path(value))
    monkeypatch.setattr("flexq_ft.orchestrate.cli.console.check_writable", lambda path: None)
    monkeypatch.setattr(sensitivity_options, "check_writable", lambda path: None)
    command: click.Command = cli
    context: Any = None
    args = shlex.split(text)[1:]
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context, info_name=command.name)
        name, found, args = command.resolve_command(context, args)
        assert found is not None, name
        command = found
    command.make_context(command.name, args, parent=context)
