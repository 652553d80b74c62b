"""The Markdown report and the screen table of a sweep, both made from its rows alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flexq_ft.orchestrate.sweep.store import Row

REPORT_NAME = "report.md"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: its title, and the text of a row's cell ("-" where there is no value)."""

    title: str
    cell: Callable[[Row], str]
    is_number: bool = True


def _number(
    section: str, name: str, pattern: str, scale: float | None = None
) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = (row.get(section) or {}).get(name)
        if value is None:
            return "-"
        return pattern.format(value if scale is None else value * scale)

    return cell


def _rate(name: str) -> Callable[[Row], str]:
    """Median of the requests, with the spread where there were several."""

    def cell(row: Row) -> str:
        value = (row.get("metrics") or {}).get(name)
        if value is None:
            return "-"
        samples = row["metrics"]["samples"][name]
        spread = (
            f" ±{100 * (max(samples) - min(samples)) / 2 / value:.0f}%" if len(samples) > 1 else ""
        )
        return f"{value:,.1f}{spread}"

    return cell


def _perplexity(row: Row) -> str:
    ppl = (row.get("quality") or {}).get("ppl")
    if ppl is None:
        return "-"
    error = ppl["standard_error"]
    return f"{ppl['perplexity']:.3f}" + ("" if error is None else f" ±{error:.2f}")


def _agreement(row: Row) -> str:
    value = ((row.get("quality") or {}).get("agreement") or {}).get("top1")
    return "-" if value is None else f"{100 * value:.1f} %"


def _model(row: Row) -> str:
    return Path(row["config"]["model"]).name


def _precision(row: Row) -> str:
    config = row["config"]
    name = config["scheme"] or "as converted"
    policy = config["policy"]
    return name if policy is None else f"{name} ({Path(policy).name})"


def _lengths(row: Row) -> str:
    return f"{row['config']['prompt_tokens']}+{row['config']['output_tokens']}"


def _error(row: Row) -> str:
    error = row.get("error")
    return "" if error is None else f"{error['kind']}: {error['message']}"


COLUMNS = (
    Column(title="model", cell=_model, is_number=False),
    Column(title="scheme", cell=_precision, is_number=False),
    Column(title="dtype", cell=lambda row: row["config"]["dtype"] or "-", is_number=False),
    Column(title="tp", cell=_number("config", "tp", "{}")),
    Column(title="batch", cell=_number("config", "batch", "{}")),
    Column(title="tokens", cell=_lengths),
    Column(title="disk MB", cell=_number("metrics", "weights_bytes", "{:,.1f}", 1e-6)),
    Column(title="peak MB", cell=_number("metrics", "peak_memory_bytes", "{:,.0f}", 1e-6)),
    Column(title="prefill tok/s", cell=_rate("prefill_tok_s")),
    Column(title="decode tok/s", cell=_rate("decode_tok_s")),
    Column(title="perplexity", cell=_perplexity),
    Column(title="agreement", cell=_agreement),
)
ERROR_COLUMN = Column(title="error", cell=_error, is_number=False)


def newest_rows(rows: Iterable[Row]) -> list[Row]:
    """The last row of each configuration: a model that was replaced makes older ones void."""
    newest: dict[str, Row] = {}
    for row in rows:
        newest[json.dumps(row["config"], sort_keys=True)] = row
    return list(newest.values())


def _columns(rows: Sequence[Row]) -> list[Column]:
    """The type column is there only where some row names one, the model's only if they differ."""
    dropped = set()
    if not any(row["config"]["dtype"] for row in rows):
        dropped.add("dtype")
    if len({_model(row) for row in rows}) == 1:
        dropped.add("model")
    return [column for column in COLUMNS if column.title not in dropped]


def _heading(rows: Sequence[Row], title: str) -> str:
    """The title, with the model if all rows have the same."""
    models = {_model(row) for row in rows}
    return f"{title}: {models.pop()}" if len(models) == 1 else title


def screen_table(rows: Sequence[Row], *, title: str) -> Table:
    """The table for a terminal; failed rows are numbered, as error_lines names them."""
    columns = _columns(rows)
    table = Table(
        title=_heading(rows, title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("#", justify="right")
    for column in columns:
        if column.is_number:
            table.add_column(column.title, justify="right", no_wrap=True)
        else:
            table.add_column(column.title, overflow="fold")
    for number, row in enumerate(rows, start=1):
        # The spread stays in the report; here there is room for the numbers.
        table.add_row(str(number), *(column.cell(row).split(" ±")[0] for column in columns))
    return table


def error_lines(rows: Sequence[Row]) -> list[str]:
    """One line for each failed row."""
    return [
        f"row {number} failed. {_error(row)}"
        for number, row in enumerate(rows, start=1)
        if row["error"] is not None
    ]


def markdown(rows: Sequence[Row], *, title: str) -> str:
    """The whole report: the table, what the quality numbers mean, commands, and machines."""
    columns = [*_columns(rows), *([ERROR_COLUMN] if error_lines(rows) else [])]
    lines = [
        f"# {_heading(rows, title)}",
        "",
        f"{len(rows)} cases, {len(error_lines(rows))} failed.",
        "",
    ]
    lines.append(_md_line(["#", *(column.title for column in columns)]))
    lines.append(_md_line(["--:", *("--:" if c.is_number else ":--" for c in columns)]))
    for number, row in enumerate(rows, start=1):
        lines.append(_md_line([str(number), *(column.cell(row) for column in columns)]))
    lines += ["", *_meaning(rows), "", "## Commands", ""]
    lines += ["Each repeats one row, from the folder where the sweep was started.", "", "```"]
    lines += [f"{row['command']}    # row {number}" for number, row in enumerate(rows, start=1)]
    lines += ["```", "", "## Machines and builds", "", *_environments(rows)]
    return "\n".join(lines) + "\n"


def _md_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _meaning(rows: Sequence[Row]) -> list[str]:
    lines = [
        "- tokens: prompt + output. disk: the weight files of all ranks. peak: the largest "
        "resident memory, all ranks together, loading included, quality runs excluded.",
        "- prefill and decode: tokens per second of all sequences together, the median of the "
        "timed requests after one that warms up; tokenisation is outside, sampling inside; "
        "± half the range of the requests.",
    ]
    texts = {q["ppl"]["description"] for row in rows if (q := row.get("quality")) and q.get("ppl")}
    lines += [f"- perplexity: {text}; ± its standard error over windows." for text in sorted(texts)]
    baselines = {
        q["agreement"]["with"] for row in rows if (q := row.get("quality")) and q.get("agreement")
    }
    lines += [
        f"- agreement: share of positions of that text where the likeliest token is that of {name}."
        for name in sorted(baselines)
    ]
    return lines


def _environments(rows: Sequence[Row]) -> list[str]:
    """One line per distinct machine and build, with the rows measured there."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows, start=1):
        groups.setdefault(_environment_line(row["environment"]), []).append(number)
    return [f"- {line}: rows {', '.join(map(str, numbers))}" for line, numbers in groups.items()]


def _environment_line(environment: dict[str, Any]) -> str:
    isas = ", ".join(environment.get("isas") or []) or "unknown"
    return (
        f"flexq-ft {environment['version']}, commit {environment.get('commit') or 'unknown'}, "
        f"{environment.get('compiler') or 'unknown compiler'}; {environment['cpu']}, "
        f"{environment['cores']} cores (instruction sets: {isas}); Python "
        f"{environment['python']}, {environment['platform']}"
    )
