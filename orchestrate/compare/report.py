"""The table, Markdown, CSV and JSON of a comparison."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flexq_ft.orchestrate.compare.comparison import Change, Comparison, Pair
from flexq_ft.orchestrate.compare.result import Entry

TITLES = ("case", "metric", "A", "B", "B / A", "verdict", "flags")
_TEXTS = ("case", "metric", "verdict", "flags")
_QUIET = ("same", "within noise")


def screen_table(comparison: Comparison) -> Table:
    """What has changed; the rest is counted in `summary_lines`."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in TITLES:
        table.add_column(title, justify="left" if title in _TEXTS else "right", overflow="fold")
    last = None
    for pair in comparison.pairs:
        for change in pair.changes:
            if change.verdict not in _QUIET:
                cells = _cells(pair, change)
                table.add_row(*cells if pair is not last else ["", *cells[1:]])
                last = pair
    return table


def _cells(pair: Pair, change: Change) -> list[str]:
    spread = f" ±{change.interval:.3f}" if change.interval else ""
    flags = sorted({*pair.a.flags, *pair.b.flags})
    return [
        pair.a.label,
        change.metric,
        f"{change.a:,.6g}",
        f"{change.b:,.6g}",
        f"{change.ratio:.3f}{spread}",
        change.verdict,
        ", ".join(flags),
    ]


def summary_lines(comparison: Comparison) -> list[str]:
    """What was compared, how it came out, and what has no counterpart."""
    verdicts = [change.verdict for pair in comparison.pairs for change in pair.changes]
    counts = {name: verdicts.count(name) for name in dict.fromkeys(sorted(verdicts))}
    lines = [
        f"A: {comparison.a.path} ({comparison.a.about})",
        f"B: {comparison.b.path} ({comparison.b.about})",
        f"{len(comparison.pairs)} cases, {len(verdicts)} numbers: "
        + ", ".join(f"{count} {name}" for name, count in counts.items()),
    ]
    lines += [f"not alike: {text}" for text in comparison.differences]
    for name, entries in (("A", comparison.only_a), ("B", comparison.only_b)):
        lines += [f"only in {name}: {entry.label}" for entry in entries]
    for pair in comparison.pairs:
        for name, entry in (("A", pair.a), ("B", pair.b)):
            if entry.error is not None:
                lines.append(f"failed in {name}: {entry.label}. {entry.error}")
    return lines


MEANING = (
    "better and worse: the ratio is further from 1 than the 95 % interval of the requests on both "
    "sides; unknown noise: one side has a single request."
)


def markdown(comparison: Comparison, failures: Mapping[str, Sequence[str]]) -> str:
    """Every number, and which conditions failed."""
    lines = ["# Comparison", "", *(f"- {line}" for line in summary_lines(comparison)), ""]
    lines += [_md_line(TITLES)]
    lines += [_md_line(":--" if title in _TEXTS else "--:" for title in TITLES)]
    lines += [
        _md_line(_cells(pair, change)) for pair in comparison.pairs for change in pair.changes
    ]
    lines += ["", MEANING]
    for text, offenders in failures.items():
        lines += ["", f"## `{text}`", "", *(f"- {line}" for line in offenders or ["of no case"])]
    return "\n".join(lines) + "\n"


def _md_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_csv(comparison: Comparison) -> str:
    """One line a number."""
    out = io.StringIO()
    names = ("case", "metric", "a", "b", "ratio", "interval95", "verdict")
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for pair in comparison.pairs:
        writer.writerows({"case": pair.a.label, **_change_json(c)} for c in pair.changes)
    return out.getvalue()


def to_json(comparison: Comparison, failures: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The `results` of the envelope."""
    return {
        "kind": comparison.a.kind,
        "a": {"path": str(comparison.a.path), "about": comparison.a.about},
        "b": {"path": str(comparison.b.path), "about": comparison.b.about},
        "differences": comparison.differences,
        "pairs": [_pair_json(pair) for pair in comparison.pairs],
        "only_a": [entry.label for entry in comparison.only_a],
        "only_b": [entry.label for entry in comparison.only_b],
        "fail_if": [
            {"condition": text, "offenders": list(lines)} for text, lines in failures.items()
        ],
    }


def _pair_json(pair: Pair) -> dict[str, Any]:
    return {
        "case": pair.a.label,
        "a": _entry_json(pair.a),
        "b": _entry_json(pair.b),
        "changes": [_change_json(change) for change in pair.changes],
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {"conditions": entry.conditions, "flags": list(entry.flags), "error": entry.error}


def _change_json(change: Change) -> dict[str, Any]:
    return {
        "metric": change.metric,
        "a": change.a,
        "b": change.b,
        "ratio": change.ratio,
        "interval95": change.interval,
        "verdict": change.verdict,
    }
