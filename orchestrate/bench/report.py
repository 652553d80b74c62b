"""The table, Markdown and CSV of bench latency, all made from its rows alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flexq_ft.orchestrate.bench.case import Case, scheme_label
from flexq_ft.orchestrate.bench.row import Row

COLUMNS = (
    "scheme", "batch", "tokens", "phase", "p50 ms", "p90 ms", "cv", "tok/s", "on device",
    "of peak", "GB w/KV/all", "flags",
)  # fmt: skip
_TEXTS = ("scheme", "phase", "flags")

CSV_COLUMNS = (
    "model", "scheme", "policy", "dtype", "lm_head", "tp", "device", "device_name", "batch",
    "prompt_tokens", "output_tokens", "phase", "n", "p50_ms", "p90_ms", "mean_ms", "stdev_ms", "cv",
    "min_ms", "device_p50_ms", "device_p90_ms", "tok_s", "device_tok_s", "share_of_peak",
    "read_bandwidth_gb_s", "weights_bytes", "kv_cache_bytes", "activations_bytes",
    "workspace_bytes", "total_bytes", "interleaved", "flags", "error", "reproduce",
)  # fmt: skip


def row_label(row: Row) -> str:
    """As a table shows it; what was not asked for is as the folder was found to have it."""
    config, model = row["config"], row["model"]
    if model is not None:
        config = {**config, "lm_head": model["lm_head"]}
        if config["scheme"] is None:
            config |= {"scheme": model["scheme"], "policy": _policy(row)}
    return scheme_label(Case(**config))


def _policy(row: Row) -> str | None:
    """As it was given, or by its name, as flexq is the policy of scheme flexq."""
    given: str | None = row["config"]["policy"] or (row["model"]["policy"] or {}).get("name")
    return given


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Two lines a row, one a phase; an error takes the place of numbers."""
    lines = []
    for row in rows:
        config = row["config"]
        head = [row_label(row), str(config["batch"]), _lengths(config)]
        if row["error"] is not None:
            empty = [""] * (len(COLUMNS) - len(head) - 2)
            lines.append([*head, "failed", *empty, row["error"]["kind"]])
            continue
        prefill, decode = row["prefill"], row["decode"]
        flags = ", ".join(row["flags"])
        lines.append(
            [*head, "prefill", *_phase(prefill, "ttft_ms", "share_of_peak"), _memory(row), flags]
        )
        if decode is not None:
            shown = _phase(decode, "tpot_ms", "share_of_bandwidth")
            lines.append(["", "", "", "decode", *shown, "", ""])
    return lines


def _lengths(config: dict[str, Any]) -> str:
    return f"{config['prompt_tokens']}+{config['output_tokens']}"


def _phase(phase: dict[str, Any], times: str, share: str) -> list[str]:
    wall = phase[times]
    return [
        f"{wall['p50']:,.3f}",
        f"{wall['p90']:,.3f}",
        _optional(wall["cv"], "{:.1%}"),
        f"{phase['tok_s']:,.1f}",
        _optional(phase["device_tok_s"], "{:,.1f}"),
        _optional(phase[share], "{:.1%}"),
    ]


def _optional(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def _memory(row: Row) -> str:
    kinds = row["memory_bytes"]
    sizes = (kinds["weights"], kinds["kv_cache"], kinds["total"])
    return "/".join(f"{size / 1e9:.2f}" for size in sizes)


def screen_table(rows: Sequence[Row], *, title: str) -> Table:
    """For a terminal."""
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in COLUMNS:
        table.add_column(
            name,
            justify="left" if name in _TEXTS else "right",
            no_wrap=name != "flags",
            overflow="fold",
            min_width=10 if name == "flags" else None,
        )
    for line in cells(rows):
        table.add_row(*line)
    return table


def reproduce_lines(rows: Sequence[Row]) -> list[str]:
    """One a row: the command that measures it alone, and what it was measured on."""
    return [
        f"reproduce: {row['reproduce']}"
        + ("" if row["model"] is None else f"    model {row['model']['digest'][:19]}…")
        for row in rows
    ]


def profile_table(row: Row) -> Table:
    """Node by node of one decode step, the slowest first."""
    table = Table(
        title=f"{row_label(row)}, batch {row['config']['batch']}: one step, op by op",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in PROFILE_COLUMNS:
        table.add_column(name, justify="left" if name == "node" else "right")
    for line in profile_cells(row):
        table.add_row(*line)
    return table


PROFILE_COLUMNS = ("node", "count", "ms", "ms each", "MB", "of DRAM")


def profile_cells(row: Row) -> list[list[str]]:
    """Nodes of one name together (a layer has each once), and their sum."""
    bandwidth = 1e9 * row["machine"]["read_bandwidth_gb_s"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for node in row["profile"]:
        groups.setdefault(node["name"], []).append(node)
    slowest = sorted(groups.items(), key=lambda item: -sum(node["ms"] for node in item[1]))
    lines = [_profile_line(name, nodes, bandwidth) for name, nodes in slowest]
    return [*lines, _profile_line("all", row["profile"], bandwidth)]


def _profile_line(name: str, nodes: Sequence[dict[str, Any]], bandwidth: float) -> list[str]:
    ms, size = sum(node["ms"] for node in nodes), sum(node["bytes"] for node in nodes)
    share = size / bandwidth / (1e-3 * ms) if size and ms > 0 else None
    each = f"{ms / len(nodes):.4f}" if name != "all" else ""
    return [name, str(len(nodes)), f"{ms:.4f}", each, f"{size / 1e6:,.1f}",
            _optional(share, "{:.1%}")]  # fmt: skip


def markdown(rows: Sequence[Row], *, title: str) -> str:
    """The table, what its numbers mean, commands, machines."""
    lines = [f"# {title}", "", *_md_table(COLUMNS, cells(rows)), "", *_meaning(rows), ""]
    for row in rows:
        if row.get("profile"):
            label = row_label(row)
            lines += [f"## One decode step, op by op: {label}, batch {row['config']['batch']}", ""]
            lines += [*_md_table(PROFILE_COLUMNS, profile_cells(row)), ""]
    lines += ["## Commands", "", "```", *(row["reproduce"] for row in rows), "```"]
    return "\n".join(lines) + "\n"


def _md_table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rule = [":--" if name in (*_TEXTS, "node") else "--:" for name in columns]
    return [_md_line(columns), _md_line(rule), *(_md_line(line) for line in lines)]


def _md_line(parts: Iterable[str]) -> str:
    return "| " + " | ".join(part.replace("|", "\\|") for part in parts) + " |"


def _meaning(rows: Sequence[Row]) -> list[str]:
    lines = [
        "- prefill: prompts handed over until every sequence has its first token on the host; "
        "decode: time per output token after that. p50, p90 and cv over requests; tokenisation "
        "outside, sampling inside. tok/s of all sequences together, by the wall clock; on device: "
        "the same by the device's own step times.",
        "- of peak: for decode the bytes that a step must read (weights, scales, head, KV at the "
        "mean context) over time and the read bandwidth measured in this run; for a prefill its "
        "operations over time and a peak that was given.",
        "- GB w/KV/all: what one rank's engine holds: weights, KV cache, and all kinds together.",
    ]
    machines = {_machine_line(row) for row in rows if row["machine"] is not None}
    return [*lines, *(f"- {line}" for line in sorted(machines))]


def _machine_line(row: Row) -> str:
    machine = row["machine"]
    state = (machine["gpus_after"] or [{}])[0]
    known = [
        f"{state[key]:,.0f} {unit}"
        for key, unit in (("sm_mhz", "MHz SM"), ("memory_mhz", "MHz memory"),
                          ("temperature_c", "°C"), ("power_w", "W"))
        if state.get(key) is not None
    ]  # fmt: skip
    after = f"; after {row_label(row)}: {', '.join(known)}" if known else ""
    notes = "".join(f"; {machine[key]}" for key in ("gemm_note", "step_note") if machine[key])
    return f"{machine['name']}: {machine['read_bandwidth_gb_s']:,.1f} GB/s read{after}{notes}"


def to_csv(rows: Sequence[Row]) -> str:
    """One line a phase."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        if row["error"] is not None:
            writer.writerow({**_csv_head(row), "error": row["error"]["message"]})
            continue
        for name, times, device, share in (
            ("prefill", "ttft_ms", "device_ms", "share_of_peak"),
            ("decode", "tpot_ms", "device_step_ms", "share_of_bandwidth"),
        ):
            if row[name] is not None:
                writer.writerow(_csv_line(row, name, times, device, share))
    return out.getvalue()


def _csv_head(row: Row) -> dict[str, Any]:
    config = row["config"]
    names = ("model", "scheme", "policy", "dtype", "lm_head", "tp", "device", "batch",
             "prompt_tokens", "output_tokens")  # fmt: skip
    return {**{name: config[name] for name in names}, "reproduce": row["reproduce"]}


def _csv_line(row: Row, name: str, times: str, device: str, share: str) -> dict[str, Any]:
    phase, machine = row[name], row["machine"]
    wall, on_device = phase[times], phase[device] or {}
    return {
        **_csv_head(row),
        "scheme": row["model"]["scheme"],
        "policy": _policy(row),
        "dtype": row["model"]["dtype"],
        "lm_head": row["model"]["lm_head"],
        "device": machine["device"],
        "device_name": machine["name"],
        "phase": name,
        **{f"{key}_ms": wall[key] for key in ("p50", "p90", "mean", "stdev", "min")},
        "n": wall["n"],
        "cv": wall["cv"],
        "device_p50_ms": on_device.get("p50"),
        "device_p90_ms": on_device.get("p90"),
        "tok_s": phase["tok_s"],
        "device_tok_s": phase["device_tok_s"],
        "share_of_peak": phase[share],
        "read_bandwidth_gb_s": machine["read_bandwidth_gb_s"],
        **{f"{kind}_bytes": size for kind, size in row["memory_bytes"].items()},
        "interleaved": row["interleaved"],
        "flags": " ".join(row["flags"]),
    }
