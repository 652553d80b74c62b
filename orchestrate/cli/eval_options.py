"""Options that the members of `eval` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import rich_click as click

from flexq_ft.orchestrate.cli.options import SIZE

_F = TypeVar("_F", bound=Callable[..., Any])


def text_options(function: _F) -> _F:
    """The text and how it is cut into windows: group `Text`."""
    options = [
        click.option(
            "--text", required=True, metavar="FILE|wikitext2|c4", panel="Text",
            help="A UTF-8 file, or a data set by name (needs `datasets`, and a network).",
        ),
        click.option(
            "--protocol", type=click.Choice(["paper", "raw"]), panel="Text",
            help="paper: lines joined by blank lines, as papers read WikiText; raw: the text as it "
            "is. Both: tokenised once, windows that do not overlap.  [default: paper; c4: raw]",
        ),
        click.option(
            "--window", type=SIZE, metavar="N", panel="Text",
            help="Tokens of a window.  [default: 2048, or the model's positions if fewer]",
        ),
        click.option(
            "--max-windows", type=click.IntRange(min=1), metavar="N", panel="Text",
            help="Only the first N windows.  [default: all]",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function
