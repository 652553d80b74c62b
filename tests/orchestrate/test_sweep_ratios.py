"""Scheme against scheme: which row is a baseline, and what stands in the tables."""

from __future__ import annotations

from typing import Any

from flexq_ft.orchestrate.sweep.case_config import Case
from flexq_ft.orchestrate.sweep.csv_table import to_csv
from flexq_ft.orchestrate.sweep.metrics import finished_metrics
from flexq_ft.orchestrate.sweep.points import points_of, precision_name
from flexq_ft.orchestrate.sweep.ratios import TITLES, ratio_cells
from flexq_ft.orchestrate.sweep.report import markdown


def row(
    scheme: str, step_kernel: str, *, step: float, size: float, kernel: int, **config: Any
) -> dict[str, Any]:
    """A case of 10 tokens, of `step` ms each, whose steps read `size` GB; kernel: sequences of the
    largest step that ran as one."""
    policy = "flexq" if scheme == "w6ax" else None
    case = Case(model="m", scheme=scheme, policy=policy, step_kernel=step_kernel,
                **{"output_tokens": 10, **config})  # fmt: skip
    samples = {
        "prefill_tok_s": [1.0], "decode_tok_s": [1e3 / step], "ttft_ms": [1.0], "tpot_ms": [step],
        "step_ms": [[step] * 9], "latency_10_ms": [10 * step],
    }  # fmt: skip
    measured = {
        "batch": case.batch, "weights_bytes": 1, "read_bandwidth_gb_s": 1e6, "requests": 1,
        "peak_memory_bytes": round(1e9 * size), "memory_bytes": dict.fromkeys(MEMORY, 1),
        "lengths": [{"output_tokens": 10, "bytes_per_step": 1e9 * size}],
    }  # fmt: skip
    return {
        "case_id": case.case_id, "config": case.model_dump(mode="json"),
        "metrics": finished_metrics(samples, measured), "quality": None, "error": None, "flags": [],
        "machine": {"device": "cpu", "name": "x", "step_kernel_batch": kernel}, "command": "c",
        "rounds": 1, "environment": {"version": "1", "cpu": "x", "cores": 1, "python": "3",
                                     "platform": "p"},
    }  # fmt: skip


MEMORY = ("weights", "kv_cache", "activations", "workspace", "process", "polled")
ROWS = [
    row("fp16", "auto", step=8.0, size=16, kernel=1),
    row("fp16", "off", step=7.0, size=17, kernel=0),
    row("w8a16", "auto", step=3.0, size=8, kernel=1),
    row("w8a8", "auto", step=3.5, size=8.5, kernel=1),
    row("w8a8", "off", step=5.0, size=9, kernel=0),
    row("w6ax", "auto", step=2.0, size=6.25, kernel=1),
]


def ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """By precision: the cells by title, those of memory with a mark of their own."""
    titles = list(TITLES)
    memory = titles.index("peak MB")
    names = [f"memory {name}" if i > memory else name for i, name in enumerate(titles)]
    return {line[4]: dict(zip(names, line, strict=True)) for line in ratio_cells(points_of(rows))}


def test_each_baseline_is_at_its_best_and_kernel_per_op_stands_apart() -> None:
    found = ratios(ROWS)
    assert list(found) == [
        "fp16", "fp16, op by op", "w8a16", "w8a8", "w8a8, op by op", "w6ax (flexq)",
    ]  # fmt: skip
    ours = found["w6ax (flexq)"]
    assert ours["x fp16"] == "3.500"  # the faster of 8 and 7
    assert ours["x w8a8 op by op"] == "2.500"
    assert ours["x 8 bit"] == "1.500" and ours["bytes x 8 bit"] == "1.280"  # w8a16's
    assert ours["memory x fp16"] == "2.560" and ours["memory x w8a8"] == "1.360"
    assert found["w8a8"]["x w8a8 op by op"] == "1.429"
    assert found["fp16"]["x fp16"] == "0.875"


def test_larger_batches_than_the_kernel_takes_are_op_by_op() -> None:
    rows = [
        row("w8a8", "auto", step=4.0, size=8, kernel=1, batch=16),
        row("w6ax", "auto", step=2.0, size=6, kernel=1, batch=16),
    ]
    assert ratios(rows)["w6ax (flexq)"]["x w8a8 op by op"] == "2.000"
    rows[0]["config"]["batch"] = rows[1]["config"]["batch"] = 1
    assert ratios(rows)["w6ax (flexq)"]["x w8a8 op by op"] == "-"


def test_another_head_is_another_setting() -> None:
    head = row("w6ax", "auto", step=1.0, size=6, kernel=0, lm_head="w8")
    assert precision_name(head) == "w6ax (flexq), lm_head w8"
    assert "w6ax (flexq), lm_head w8" not in ratios([*ROWS, head])


def test_report_and_csv_say_the_form() -> None:
    text = markdown(ROWS, title="t")
    assert "| w8a8, op by op |" in text and "| x w8a8 op by op |" in text
    assert "bytes x 8 bit: what a decode step" in text
    lines = to_csv(ROWS).splitlines()
    columns = lines[0].split(",")
    cells = dict(zip(columns, lines[5].split(","), strict=True))
    assert (cells["step_kernel"], cells["step_kernel_batch"], cells["lm_head"]) == ("off", "0", "")


def test_rows_from_before_there_was_a_choice_have_the_names_of_auto() -> None:
    old = row("w8a8", "auto", step=4.0, size=8, kernel=0)
    name = precision_name(old)
    for axis in ("step_kernel", "lm_head", "rotate", "smooth", "rounding", "calibration"):
        del old["config"][axis]
    del old["machine"]["step_kernel_batch"]
    assert precision_name(old) == name == "w8a8"
    assert points_of([old])[0].is_op_by_op
    assert to_csv([old]).count("\n") == 2
