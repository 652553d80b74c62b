"""Tables on terminals of every width: what stands in them can be read."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.box import SIMPLE_HEAD
from rich.table import Table

from flexq_ft.orchestrate.cli.console import console

PATH = "/models/of/somebody/with/a/long/name"
ROWS = [
    ["1", "w6ax (flexq)", "18,546.9", "1,234.5\n45.8%", PATH],
    ["2", "fp16", "2.0", "7\n3.1%", "short"],
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def table(**style: Any) -> Table:
    made = Table(**style)
    made.add_column("#", justify="right")
    made.add_column("scheme")
    made.add_column("prefill tok/s", justify="right", no_wrap=True)
    made.add_column("decode and its share", justify="right")
    made.add_column("model", min_width=10)
    for row in ROWS:
        made.add_row(*row)
    return made


def printed(made: Table, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout", stream := Terminal())
    console.reset([])
    console.show(made)
    return re.sub("\x1b\\[[0-9;]*m", "", stream.getvalue()).splitlines()


@pytest.mark.parametrize("style", [{}, {"box": SIMPLE_HEAD, "pad_edge": False}])
@pytest.mark.parametrize("width", range(8, 100, 4))
def test_numbers_stay_whole_and_texts_fold(
    width: int, style: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(table(**style), width, monkeypatch)
    assert len({len(line) for line in lines}) == 1  # a border that is cut makes a line shorter
    text = "\n".join(lines)
    for number in ("18,546.9", "2.0", "1,234.5", "45.8%", "3.1%", "7"):
        assert number in text
    assert "…" not in text
    if not style:  # borders say where a cell ends
        cells = [line.split("│")[-2] for line in lines if line.startswith("│")]
        assert PATH in "".join(cell.strip() for cell in cells)


@pytest.mark.parametrize("width", [68, 80, 100, 200])
def test_a_table_is_no_wider_than_a_terminal_that_can_hold_it(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(table(), width, monkeypatch)
    assert max(map(len, lines)) <= width


def test_one_that_fits_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = printed(table(), 200, monkeypatch)
    assert printed(table(), len(wide[0]), monkeypatch) == wide
    assert "prefill tok/s" in wide[1] and PATH in "".join(wide)
