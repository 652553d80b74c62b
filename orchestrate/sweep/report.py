"""The Markdown report and the screen table of a sweep, both made from its rows alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flexq_ft.orchestrate.sweep.points import model_name, points_of, precision_name
from flexq_ft.orchestrate.sweep.ratios import MEANING, TITLES, ratio_cells
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


def _perplexity_lost(row: Row) -> str:
    against = (row.get("quality") or {}).get("agreement") or {}
    ratio, interval = (
        against.get(name) for name in ("perplexity_ratio", "perplexity_ratio_confidence95")
    )
    if ratio is None:  # rows of an older version have agreement alone
        return "-"
    half = "" if interval is None else f" ±{50 * (interval[1] - interval[0]):.2f}"
    return f"{100 * (ratio - 1):+.2f} %{half}"


def _agreement(row: Row) -> str:
    value = ((row.get("quality") or {}).get("agreement") or {}).get("top1")
    return "-" if value is None else f"{100 * value:.1f} %"


def _of_floor(row: Row) -> str:
    lengths = (row.get("metrics") or {}).get("lengths") or [{}]
    share = lengths[-1].get("share_of_floor")
    return "-" if share is None else f"{share:.1%}"


def _latencies(row: Row) -> str:
    lengths = (row.get("metrics") or {}).get("lengths") or []
    return ", ".join(f"{one['output_tokens']}: {one['latency_ms']:,.0f}" for one in lengths) or "-"


def _lengths(row: Row) -> str:
    return f"{row['config']['prompt_tokens']}+{row['config']['output_tokens']}"


def _error(row: Row) -> str:
    error = row.get("error")
    return "" if error is None else f"{error['kind']}: {error['message']}"


COLUMNS = (
    Column(title="model", cell=model_name, is_number=False),
    Column(title="scheme", cell=precision_name, is_number=False),
    Column(title="dtype", cell=lambda row: row["config"]["dtype"] or "-", is_number=False),
    Column(title="tp", cell=_number("config", "tp", "{}")),
    Column(title="batch", cell=_number("config", "batch", "{}")),
    Column(title="tokens", cell=_lengths),
    Column(title="weights MB", cell=_number("metrics", "weights_bytes", "{:,.1f}", 1e-6)),
    Column(title="peak MB", cell=_number("metrics", "peak_memory_bytes", "{:,.0f}", 1e-6)),
    Column(title="prefill tok/s", cell=_rate("prefill_tok_s")),
    Column(title="decode tok/s", cell=_rate("decode_tok_s")),
    Column(title="of floor", cell=_of_floor),
    Column(title="ms to tokens", cell=_latencies),
    Column(title="perplexity", cell=_perplexity),
    Column(title="lost", cell=_perplexity_lost),
    Column(title="agreement", cell=_agreement),
    Column(title="flags", cell=lambda row: ", ".join(row["flags"]), is_number=False),
)
ERROR_COLUMN = Column(title="error", cell=_error, is_number=False)


# Of a configuration: how it is measured, and not what.
_HOW = ("repeat", "seed", "quality", "latency_at")


def newest_rows(rows: Iterable[Row]) -> list[Row]:
    """The last row of each configuration: a model that was replaced makes older ones void, and so
    does another `repeat`, `seed`, `quality` or `latency_at`."""
    newest: dict[str, Row] = {}
    for row in rows:
        what = {name: value for name, value in row["config"].items() if name not in _HOW}
        newest[json.dumps(what, sort_keys=True)] = row
    return list(newest.values())


def _columns(rows: Sequence[Row]) -> list[Column]:
    """Without those that would be empty, or the same in every row."""
    dropped = set()
    if not any(row["config"]["dtype"] for row in rows):
        dropped.add("dtype")
    if len({model_name(row) for row in rows}) == 1:
        dropped.add("model")
    if not any(row["config"]["latency_at"] for row in rows):
        dropped.add("ms to tokens")
    if not any(row["quality"] for row in rows):
        dropped.add("perplexity")
    if not any((row["quality"] or {}).get("agreement") for row in rows):
        dropped |= {"lost", "agreement"}
    if not any(row["flags"] for row in rows):
        dropped.add("flags")
    return [column for column in COLUMNS if column.title not in dropped]


def _heading(rows: Sequence[Row], title: str) -> str:
    """The title, with the model if all rows have the same."""
    models = {model_name(row) for row in rows}
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
    """One line for each failed row, with the cause that the table has no room for."""
    return [
        f"row {number} failed. {_error(row)} {row['error']['cause']}".rstrip()
        for number, row in enumerate(rows, start=1)
        if row["error"] is not None
    ]


def markdown(rows: Sequence[Row], *, title: str, plots: Sequence[str] = ()) -> str:
    """The whole report: the table, what its numbers mean, commands, and machines.

    plots: names of images beside it."""
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
    lines += ["", *_meaning(rows), ""]
    lines += [line for name in plots for line in (f"![{name.partition('.')[0]}]({name})", "")]
    if ratios := ratio_cells(points_of(rows)):
        lines += ["## Scheme against scheme", "", MEANING, ""]
        lines += [_md_line(TITLES), _md_line(["--:" for _ in TITLES]), *map(_md_line, ratios), ""]
    lines += ["## Commands", ""]
    lines += ["Each repeats one row, from the folder where the sweep was started.", "", "```"]
    lines += [f"{row['command']}    # row {number}" for number, row in enumerate(rows, start=1)]
    lines += ["```", "", "## Machines and builds", "", *_environments(rows)]
    return "\n".join(lines) + "\n"


def _md_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _meaning(rows: Sequence[Row]) -> list[str]:
    devices = {row["machine"]["device"].partition(":")[0] for row in rows if row["machine"]}
    lines = [
        "- tokens: prompt + output. weights: the files of all ranks, or what the engines hold of "
        "synthetic ones."
    ]
    if "cpu" in devices:
        lines.append(
            "- peak on the CPU: the largest resident memory, all ranks together, loading included, "
            "quality runs excluded."
        )
    if "cuda" in devices:
        lines.append(
            "- peak on GPUs: free memory before the process less its minimum until the last timed "
            "request, polled every 10 ms from outside and asked from within; the larger counts, "
            "contexts and workspaces included, all ranks together. unpolled: from within alone."
        )
    lines += [
        "- prefill and decode: tokens per second of all sequences together, the median of the "
        "timed requests after one that warms up (32 decode steps); tokenisation is outside, "
        "sampling inside; ± half the range of the requests.",
        "- of floor: bytes that a decode step must read (weights, scales, head, KV at the mean "
        "context) over the read bandwidth measured in the same process, over the step's time.",
    ]
    if any(row["config"]["latency_at"] for row in rows):
        lines.append(
            "- ms to tokens: from the first prompt token handed over until so many tokens of every "
            "sequence are on the host, all from the same requests."
        )
    texts = {q["ppl"]["description"] for row in rows if (q := row.get("quality")) and q.get("ppl")}
    lines += [f"- perplexity: {text}; ± its standard error over windows." for text in sorted(texts)]
    baselines = {
        q["agreement"]["with"] for row in rows if (q := row.get("quality")) and q.get("agreement")
    }
    lines += [
        f"- agreement: share of positions of that text where the likeliest token is that of "
        f"{name}; lost: perplexity above that of {name}, ± half the 95 % interval of the windows' "
        "paired differences."
        for name in sorted(baselines)
    ]
    return lines


def _environments(rows: Sequence[Row]) -> list[str]:
    """One line per distinct machine and build, with the rows measured there."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows, start=1):
        line = _environment_line(row["environment"]) + _device_text(row["machine"])
        groups.setdefault(line, []).append(number)
    return [f"- {line}: rows {', '.join(map(str, numbers))}" for line, numbers in groups.items()]


def _environment_line(environment: dict[str, Any]) -> str:
    isas = ", ".join(environment.get("isas") or []) or "unknown"
    return (
        f"flexq-ft {environment['version']}, commit {environment.get('commit') or 'unknown'}, "
        f"{environment.get('compiler') or 'unknown compiler'}; {environment['cpu']}, "
        f"{environment['cores']} cores (instruction sets: {isas}); Python "
        f"{environment['python']}, {environment['platform']}"
    )


def _device_text(machine: dict[str, Any] | None) -> str:
    """The GPUs of a row, its GEMM choices and how its steps ran; nothing more on a CPU."""
    if machine is None or machine["device"] == "cpu":
        return ""
    states = machine["gpus_after"]
    driver = f", driver {states[0]['driver']}" if states and states[0]["driver"] else ""
    notes = f"{machine['gemm_note']}; {machine['step_note']}"
    return f"; {machine['name']} ({machine['device']}){driver}; {notes}"
