"""`flexq-ft cache rm`: remove converted models."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import rich_click as click
from click.shell_completion import CompletionItem

from flexq_ft.errors import ConfigError, FlexQFtError
from flexq_ft.orchestrate.cache_entries import SHORT_ID, Entry, find_entries, select
from flexq_ft.orchestrate.cli.cache import (
    cache_dir_option,
    entry_table,
    none_text,
    size_text,
    total_text,
)
from flexq_ft.orchestrate.cli.console import common_options, console
from flexq_ft.orchestrate.model_cache import cache_root, remove

SCHEMA = "flexq-ft/cache-rm/1"

EPILOG = """\
Examples:
  flexq-ft cache rm 3f9a01bc
  flexq-ft cache rm ./llama-7b-hf --dry-run
  flexq-ft cache rm --older-than 30d --yes

An ID may be cut to its first digits. MODEL, the path or name of a checkpoint,
is all that was converted from it. Of several conditions each must hold. The
exit code is 1 if something that was chosen had to be left.
"""

_UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}


class _AgeType(click.ParamType[int]):
    """A time in hours, days or weeks, as seconds: 12h, 30d, 4w."""

    name = "age"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,6})([hdw])", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a time such as 12h, 30d or 4w.", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


def _complete(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    try:
        entries, _ = find_entries(cache_root(ctx.params.get("cache_dir")))
    except FlexQFtError:
        return []
    return [
        CompletionItem(entry.key[:SHORT_ID], help=entry.model)
        for entry in entries
        if entry.key.startswith(begun)
    ]


@click.command("rm", epilog=EPILOG)
@click.argument("wanted", metavar="[ID|MODEL]...", nargs=-1, shell_complete=_complete)
@click.option("--all", "take_all", is_flag=True, help="All of them.")
@click.option("--incomplete", is_flag=True, help="Only those that hold no complete model.")
@click.option(
    "--older-than", type=_AgeType(), metavar="AGE", help="Only those not used for 12h, 30d, 4w."
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@cache_dir_option
@common_options
@click.pass_context
def command(
    ctx: click.Context,
    *,
    wanted: tuple[str, ...],
    take_all: bool,
    incomplete: bool,
    older_than: int | None,
    dry_run: bool,
    yes: bool,
    cache_dir: Path | None,
) -> int:
    """Remove models that were converted on the fly; a run that needs one converts it again.

    Nothing else in the folder is touched, nor a model that a process is converting or loading.
    """
    if wanted and take_all:
        raise click.UsageError("--all leaves no choice: name models, or give --all.", ctx)
    if not (wanted or take_all or incomplete or older_than is not None):
        raise click.UsageError("Name models, or give --all, --incomplete or --older-than.", ctx)
    root = cache_root(cache_dir)
    entries, _ = find_entries(root)
    if wanted and not entries:
        raise ConfigError(f"{none_text(root)}.", hint="--cache-dir FOLDER, if it is another")
    chosen = select(entries, wanted) if wanted else entries
    if incomplete:
        chosen = [entry for entry in chosen if entry.state != "complete"]
    if older_than is not None:
        oldest = time.time() - older_than
        chosen = [entry for entry in chosen if entry.last_used <= oldest]
    left = {entry.path: entry.obstacle for entry in chosen if entry.obstacle}
    free = [entry for entry in chosen if entry.path not in left]
    if free and not (yes or dry_run) and not _agreed(free):
        free = []
    removed = []
    for entry in free:
        if why := "" if dry_run else remove(entry.path):
            left[entry.path] = why
        else:
            removed.append(entry)
    for path, why in left.items():
        console.warn(f"left: {path.name}: {why}")
    lines = _summary(removed, dry_run=dry_run) if entries else [none_text(root)]
    if not console.json_mode:
        console.out("\n".join(lines))
    console.emit(
        SCHEMA,
        config={
            "cache_dir": str(root),
            "wanted": list(wanted),
            "all": take_all,
            "incomplete": incomplete,
            "older_than_s": older_than,
            "dry_run": dry_run,
        },
        results={
            "removed": [entry.to_json() for entry in removed],
            "freed_bytes": sum(entry.total_bytes for entry in removed),
            "left": [{"path": str(path), "why": why} for path, why in left.items()],
        },
        markdown="".join(f"- {line}\n" for line in [*lines, *console.warnings]),
    )
    return 1 if left else 0


def _agreed(entries: list[Entry]) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{total_text(entries)}, would be removed, and there is no terminal to ask at.",
            hint="--yes removes without asking, --dry-run only says what",
        )
    console.info(entry_table(entries))
    return click.confirm(f"Remove {total_text(entries)}?", err=True)


def _summary(removed: list[Entry], *, dry_run: bool) -> list[str]:
    verb, freed = ("would remove", "would be freed") if dry_run else ("removed", "freed")
    lines = [f"{verb} {entry.path.name} ({size_text(entry.total_bytes)})" for entry in removed]
    return [*lines, f"{size_text(sum(entry.total_bytes for entry in removed))} {freed}"]
