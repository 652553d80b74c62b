"""`flexq-ft cache ls`: the converted models that are kept."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from flexq_ft.orchestrate.cache_entries import find_entries
from flexq_ft.orchestrate.cli.cache import (
    cache_dir_option,
    entry_table,
    markdown,
    none_text,
    total_text,
)
from flexq_ft.orchestrate.cli.console import common_options, console
from flexq_ft.orchestrate.model_cache import cache_root

SCHEMA = "flexq-ft/cache-ls/1"

EPILOG = """\
Example:
  flexq-ft cache ls

Remarks: incomplete (its conversion was interrupted; the same run goes on with
it), faulty (its manifest cannot be read), in use (being converted or loaded),
source changed or gone (no run of that checkpoint will take it again).
The policy of w6ax is not shown: each run names its own.
"""

_NAMED = 5  # of what is not of the cache


@click.command("ls", epilog=EPILOG)
@cache_dir_option
@common_options
def command(cache_dir: Path | None) -> None:
    """List the models that were converted on the fly, the last used first."""
    root = cache_root(cache_dir)
    entries, others = find_entries(root)
    summary = f"{total_text(entries)} in {root}" if entries else none_text(root)
    if not console.json_mode:
        if entries:
            console.show(entry_table(entries))
        console.out(summary)
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        names = ", ".join(others[:_NAMED])
        console.info(f"not of the cache, and never removed by cache rm: {names}{more}")
    console.emit(
        SCHEMA,
        config={"cache_dir": str(root)},
        results={
            "entries": [entry.to_json() for entry in entries],
            "total_bytes": sum(entry.total_bytes for entry in entries),
            "others": others,
        },
        markdown=markdown(entries, summary),
    )
