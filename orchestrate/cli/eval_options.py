"""The text of an evaluation, as the members of `eval` share it: options, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import rich_click as click

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.cli.options import SIZE
from flexq_ft.orchestrate.eval.perplexity import (
    LONGEST_WINDOW,
    TextProtocol,
    TextWindows,
    cut_windows,
    protocol_text,
)
from flexq_ft.orchestrate.eval.text import check_protocol, load_text

_F = TypeVar("_F", bound=Callable[..., Any])


def text_options(*, max_windows: int | None = None) -> Callable[[_F], _F]:
    """The text and how it is cut into windows: group `Text`. max_windows: the default."""
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
            default=max_windows,
            help="Only the first N windows." + ("" if max_windows else "  [default: all]"),
        ),
    ]  # fmt: skip

    def apply(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


@dataclass(frozen=True)
class WindowedText:
    """The text that the options name, and how they cut it."""

    name: str
    _data: bytes
    _protocol: TextProtocol
    _window: int | None
    _max_windows: int | None

    @classmethod
    def load(cls, options: Mapping[str, Any]) -> WindowedText:
        """Raises ConfigError, before a model is loaded, if the text cannot be, is not to be read by
        the protocol or is not UTF-8, and for a window without a token to predict."""
        text = load_text(options["text"])
        protocol = check_protocol(text, options["protocol"])
        protocol_text(text.data, protocol=protocol)
        window = options["window"]
        if window is not None and window < 2:
            raise ConfigError(
                f"--window is {window}; a window needs at least 2 tokens.",
                hint=f"--window {LONGEST_WINDOW}, or without it",
            )
        return cls(text.name, text.data, protocol, window, options["max_windows"])

    @property
    def longest_window(self) -> int:
        """Tokens of a window, unless the model has fewer positions."""
        return self._window or LONGEST_WINDOW

    def cut(self, model: TextModel) -> TextWindows:
        """Raises ConfigError as perplexity.cut_windows does."""
        return cut_windows(
            self._data,
            model.encode,
            protocol=self._protocol,
            max_positions=model.max_positions,
            window=self._window,
            max_windows=self._max_windows,
        )


class TextModel(Protocol):
    """What cuts a text into windows: a tokenizer, and the model's positions."""

    max_positions: int

    def encode(self, text: str) -> list[int]: ...


def window_config(model: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The envelope's `config` of the model and its text, before the model is loaded."""
    names = ("text", "protocol", "window", "max_windows")
    return {"model": str(model), **{name: options[name] for name in names}}
