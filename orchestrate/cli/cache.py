"""`flexq-ft cache`: the models that other verbs converted. Each of its verbs is a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import rich_click as click
from rich.table import Table

from flexq_ft.orchestrate.cache_entries import SHORT_ID, Entry
from flexq_ft.orchestrate.cli.group import MemberGroup

_F = TypeVar("_F", bound=Callable[..., Any])

# name -> the line of the help page; its module is cache_NAME beside this one.
MEMBERS = {
    "ls": "The converted models that are kept, with their sizes.",
    "rm": "Remove some of them, or all.",
}

COLUMNS = ["id", "model", "scheme", "tp", "size", "last used", "remarks"]

EPILOG = """\
Examples:
  flexq-ft cache ls
  flexq-ft cache rm --older-than 30d --dry-run
"""


@click.group("cache", cls=MemberGroup, members=MEMBERS, epilog=EPILOG)
def command() -> None:
    """List and remove the models that run, chat, bench, eval and sweep converted themselves."""


def cache_dir_option(function: _F) -> _F:
    """--cache-dir, as the verbs that convert have it."""
    return click.option(
        "--cache-dir", type=click.Path(file_okay=False, path_type=Path),
        help="Where to look.  [default: ~/.cache/flexq-ft]",
    )(function)  # fmt: skip


def entry_table(entries: Sequence[Entry]) -> Table:
    """One row an entry."""
    table = Table()
    for column in COLUMNS:
        is_short = column in ("id", "size", "last used")
        justify: Literal["right", "left"] = "right" if column == "size" else "left"
        least = len("incomplete") if column == "remarks" else None
        table.add_column(
            column, justify=justify, no_wrap=is_short, overflow="fold", min_width=least
        )
    for entry in entries:
        table.add_row(*_cells(entry))
    return table


def markdown(entries: Sequence[Entry], summary: str) -> str:
    """The same as a file."""
    lines = [COLUMNS, ["--:" if column == "size" else ":--" for column in COLUMNS]]
    lines += [[cell.replace("|", "\\|") for cell in _cells(entry)] for entry in entries]
    rows = "".join(f"| {' | '.join(line)} |\n" for line in lines if entries)
    return f"{rows}\n{summary}\n" if rows else f"{summary}\n"


def _cells(entry: Entry) -> list[str]:
    return [
        entry.key[:SHORT_ID],
        str(entry.source or entry.model),
        entry.recorded.text() if entry.recorded else "-",
        ", ".join(map(str, entry.tp)) or "-",
        size_text(entry.total_bytes),
        entry.used().strftime("%Y-%m-%d %H:%M"),
        "; ".join(entry.remarks()),
    ]


def size_text(size: int) -> str:
    """4.2 GB, 310.0 MB"""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def total_text(entries: Sequence[Entry]) -> str:
    """3 converted models, 4.2 GB"""
    noun = "converted model" if len(entries) == 1 else "converted models"
    return f"{len(entries)} {noun}, {size_text(sum(entry.total_bytes for entry in entries))}"


def none_text(root: Path) -> str:
    """Of a cache without entries, or that is not there."""
    where = str(root) if root.exists() else f"{root} (there is no such folder)"
    return f"no converted models in {where}"
