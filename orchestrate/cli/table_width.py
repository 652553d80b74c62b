"""Tables on terminals that are narrower than they are: numbers stay whole, and texts fold."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

_LEAST = 8  # columns of a text that folds


def fit(table: Table, console: Console) -> int:
    """The width at which to print the table: the console's, or more where that many columns are too
    few. Numbers (right-justified or no_wrap) stay whole, their headers wrap at blanks.
    """
    if _full_width(table, console) <= console.width:
        return console.width
    texts = [column for column in table.columns if not _is_whole(column)]
    for column in table.columns:
        column.overflow = "fold"
        if _is_whole(column):
            column.no_wrap = False
            words = _longest(str(column.header).split())
            column.width = max(_cells_width(column), words, column.min_width or 0)
        else:
            column.width = min(_text_width(column), max(_LEAST, column.min_width or 0))
    if _full_width(table, console) > console.width:
        table.padding = 0
    needed = _full_width(table, console)
    spare = max(console.width - needed, 0)
    for left, column in enumerate(sorted(texts, key=_text_width)):
        assert column.width is not None
        more = min(_text_width(column) - column.width, spare // (len(texts) - left))
        column.width += more
        spare -= more
    return max(console.width, needed)


def _full_width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update_width(10_000), table).maximum


def _is_whole(column: Column) -> bool:
    return column.no_wrap or column.justify == "right"


def _text_width(column: Column) -> int:
    return max(_cells_width(column), cell_len(str(column.header)), column.min_width or 0)


def _cells_width(column: Column) -> int:
    return _longest([line for cell in column.cells for line in str(cell).split("\n")])


def _longest(texts: list[str]) -> int:
    return max(map(cell_len, texts), default=0)
