"""The table, Markdown, CSV and chart of bench gemm, all made from its rows alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.bench import peers
from flexq_ft.orchestrate.bench.gemm import OURS, THEIRS, geometric_mean, peer_names, time_of

COLUMNS = (
    "model", "N x K", "M", "kernel", "us", "p10-p90", "full edges", "floor", "TB/s", "of read",
    "TOPS", "x target", "INT8", "FP16", "NN", "BTC", "W6A16",
)  # fmt: skip
_TEXTS = ("model", "kernel")
_RATIOS = ("over_target", "over_int8", "over_fp16", "over_nn", "over_btc", "over_weight_only")

LEGEND = (
    "us: median of one launch in a graph, weights not in the cache, the activations written by the "
    "kernel in front; sustained where that was asked for",
    "full edges: the same without programmatic launch",
    "floor: packed codes and scales over the read bandwidth of the run; target: "
    "max(1.05 x floor, floor + 1.3 us)",
    "INT8, FP16: cuBLASLt's time over ours, its best algorithm in the same run; NN: cublasGemmEx "
    "as in FlexQ's paper; BTC: FlexQ's bit planes, ours; W6A16: weight-only, ours",
    "* activations of 8 bits, else 6; quantising them counts once for all launches of a graph, ten "
    "or more, in our times, and not in those of the libraries",
)
PEER_LEGEND = (
    "peer: the time of the fastest peer over ours; peers: installed packages, each with the kernel "
    "that it chooses, checked, their weights not in the cache, in the same run"
)


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _peers_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    return peer_names(time for row in rows for time in row["times"])


def _columns(of_peers: Sequence[str]) -> list[str]:
    return [*COLUMNS, "peer", *of_peers] if of_peers else [*COLUMNS]


def _cells(row: dict[str, Any], of_peers: Sequence[str]) -> list[str]:
    best = next((t for t in row["times"] if t["implementation"] == row["best"]), None)
    star = "*" if row["act_bits"] == 8 else ""
    share = row["share_of_bandwidth"]
    return [
        row["model"],
        f"{row['n']}x{row['k']}{star}",
        str(row["m"]),
        "-" if best is None else f"{best['implementation']} {best['config']}",
        _fixed(row["us"], 2),
        "-" if best is None else f"{best['p10']:.2f}-{best['p90']:.2f}",
        _fixed(best and best["full_edges_us"], 2),
        _fixed(row["floor_us"], 2),
        _fixed(row["tb_s"], 2),
        "-" if share is None else f"{share:.1%}",
        _fixed(row["tops"], 0),
        _fixed(row["over_target"], 3),
        *(_fixed(row[name], 2) for name in _RATIOS[1:]),
        *([_fixed(row["over_peer"], 2)] if of_peers else []),
        *(_fixed(row["over_peers"].get(name), 2) for name in of_peers),
    ]


def screen_table(rows: Sequence[dict[str, Any]], *, title: str) -> Table:
    """For a terminal."""
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    of_peers = _peers_of(rows)
    for name in _columns(of_peers):
        table.add_column(name, justify="left" if name in _TEXTS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row, of_peers))
    return table


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each m: geometric means over its shapes, and the worst."""
    lines = []
    for m in dict.fromkeys(row["m"] for row in rows):
        mine = [row for row in rows if row["m"] == m]
        ratios = [
            ("of the target", max, 3, [row["over_target"] for row in mine]),
            ("x cuBLASLt INT8", min, 3, [row["over_int8"] for row in mine]),
            ("x cuBLASLt FP16", min, 3, [row["over_fp16"] for row in mine]),
            ("x the fastest peer", min, 3, [row["over_peer"] for row in mine]),
            *(
                (f"x {name}", min, 3, [row["over_peers"].get(name) for row in mine])
                for name in _peers_of(mine)
            ),
            ("TOPS", min, 0, [row["tops"] for row in mine]),
        ]
        parts = []
        for what, worst, digits, of_rows in ratios:
            values = [value for value in of_rows if value]
            mean = geometric_mean(values)
            if mean is not None:
                parts.append(f"{mean:.{digits}f} {what} (worst {worst(values):.{digits}f})")
        lines.append(f"M = {m}, {len(mine)} shapes, geometric mean: " + ", ".join(parts))
    return lines


QUANTIZER_COLUMNS = ("K", "bits", "M", "alone", "norm", "+ codes", "SiLU x up", "+ codes")


def _quantizer_cells(row: dict[str, Any]) -> list[str]:
    names = ("alone", "norm", "norm_and_codes", "activation", "activation_and_codes")
    return [str(row["k"]), str(row["act_bits"]), str(row["m"]), *(f"{row[n]:.2f}" for n in names)]


def quantizer_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """As Markdown: microseconds of a launch in a graph of 200 that depend on each other."""
    if not rows:
        return []
    head = ["| " + " | ".join(QUANTIZER_COLUMNS) + " |", "|" + " --: |" * len(QUANTIZER_COLUMNS)]
    return [*head, *("| " + " | ".join(_quantizer_cells(row)) + " |" for row in rows)]


def markdown(
    rows: Sequence[dict[str, Any]],
    quantizers: Sequence[dict[str, Any]],
    *,
    title: str,
    state: Sequence[str],
) -> str:
    """The whole report."""
    lines = [f"# {title}", ""]
    of_peers = _peers_of(rows)
    columns = _columns(of_peers)
    lines.append("| " + " | ".join(columns) + " |")
    lines.append("|" + "|".join(" :-- " if c in _TEXTS else " --: " for c in columns) + "|")
    lines += ["| " + " | ".join(_cells(row, of_peers)) + " |" for row in rows]
    notes = [*summary(rows), *LEGEND, *legend_of_peers(rows), *state]
    lines += ["", *(f"- {line}" for line in notes)]
    if of_peers:
        lines += ["", "Peers, us:", "", *_peer_lines(rows, of_peers)]
    if quantizers:
        lines += ["", "Activation quantisers, us:", "", *quantizer_lines(quantizers)]
    refused = list(dict.fromkeys(line for row in rows for line in row["refused"]))
    if refused:
        lines += ["", "Not measured:", "", *(f"- {line}" for line in refused)]
    return "\n".join(lines) + "\n"


def legend_of_peers(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What their columns mean, and what is inside their times; nothing without peers."""
    of_peers = _peers_of(rows)
    return [PEER_LEGEND, *peers.legend(of_peers)] if of_peers else []


def _peer_lines(rows: Sequence[dict[str, Any]], of_peers: Sequence[str]) -> list[str]:
    lines = [
        "| N x K | M | peer | kernel | us | p10-p90 | |",
        "| --: | --: | :-- | :-- " + "| --: " * 2 + "| :-- |",
    ]
    for row in rows:
        for time in row["times"]:
            if time["implementation"] in of_peers:
                cells = (
                    f"{row['n']}x{row['k']}",
                    row["m"],
                    time["implementation"],
                    time["config"],
                    f"{time_of(time):.2f}",
                    f"{time['p10']:.2f}-{time['p90']:.2f}",
                    time["note"],
                )
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each implementation of each row."""
    out = io.StringIO()
    shared = ("model", "n", "k", "m", "act_bits", "floor_us", "target_us")
    own = ("implementation", "config", "us", "p10", "p90", "full_edges_us", "sustained_us", "note")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*shared, *own])
    for row in rows:
        for time in row["times"]:
            writer.writerow([*(row[name] for name in shared), *(time[name] for name in own)])
    return out.getvalue()


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of the time over ours, as in FlexQ's kernel figure: one panel for each m.

    Raises ConfigError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "a chart needs matplotlib.", hint="pip install 'flexq-ft[plots]'"
        ) from error
    ms = list(dict.fromkeys(row["m"] for row in rows))
    names = [
        n
        for n in (*OURS, *THEIRS, *_peers_of(rows))
        if any(n == t["implementation"] for r in rows for t in r["times"])
    ]
    figure = Figure(
        figsize=(max(8.0, 0.8 * len(rows) / len(ms)), 3.2 * len(ms)), layout="constrained"
    )
    panels = figure.subplots(len(ms), 1, squeeze=False)[:, 0]
    for panel, m in zip(panels, ms, strict=True):
        mine = [row for row in rows if row["m"] == m]
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            heights = [
                next(
                    (time_of(t) / r["floor_us"] for t in r["times"] if t["implementation"] == name),
                    0,
                )
                for r in mine
            ]
            places = [x + (i - (len(names) - 1) / 2) * width for x in range(len(mine))]
            panel.bar(places, heights, width, label=name)
        panel.axhline(1.0, color="black", linewidth=0.8)
        labels = [f"{r['model']}\n{r['n']}x{r['k']}" for r in mine]
        panel.set_xticks(range(len(mine)), labels, rotation=60, ha="right", fontsize=7)
        panel.set_ylabel("time over the byte floor")
        panel.set_title(f"M = {m}", fontsize=9)
    panels[0].legend(fontsize=7, ncols=len(names))
    figure.savefig(path, dpi=150)
