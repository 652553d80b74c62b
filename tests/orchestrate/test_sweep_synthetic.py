"""Sweeps of shapes with random weights, in real processes on a CPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.shapes import find_shape
from flexq_ft.orchestrate.sweep.store import RowStore
from tests.orchestrate.schemas import validate

QUICK = Path(__file__).parents[2] / "configs" / "sweeps" / "quick.yaml"


@pytest.mark.slow
def test_quick_sweep_as_it_is_shipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["sweep", str(QUICK), "--out", str(tmp_path)]) == 0
    rows = RowStore(tmp_path).load()
    assert len(rows) == 16
    for row in rows:
        validate(row, "sweep.json", "#/$defs/row")
        assert row["machine"]["device"] == "cpu" and row["config"]["synthetic_weights"]
        short, whole = row["metrics"]["lengths"]
        assert row["metrics"]["ttft_ms"] < short["latency_ms"] < whole["latency_ms"]
        assert 0 < whole["share_of_floor"] < 1.02
        assert len(row["metrics"]["samples"]["step_ms"][0]) == 31
    weights = {row["config"]["scheme"]: row["metrics"]["weights_bytes"] for row in rows}
    assert weights["w6ax"] < weights["w8a8"] == weights["w8a16"] < weights["fp16"]
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "8 cases, 0 failed." in report and "Scheme against scheme" in report
    assert "synthetic weights: smollm2-135m" in capsys.readouterr().out


def write_shape(path: Path, base: str, **sizes: int) -> None:
    text = find_shape(base).read_text(encoding="utf-8")
    for key, value in sizes.items():
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    path.write_text(text, encoding="utf-8")


def test_a_case_that_cannot_fit_is_reported_and_the_rest_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shape(tmp_path / "huge.ini", "llama-3-70b", num_layer=1024, inter_size=131072)
    write_shape(tmp_path / "tiny.ini", "smollm2-135m", num_layer=2, vocab_size=320)
    sweep = {
        "schema": "flexq-ft/sweep/1",
        "synthetic_weights": True,
        "device": "cpu",
        "rounds": 2,
        "matrix": {"model": ["huge.ini", "tiny.ini"], "prompt_tokens": 5, "output_tokens": 4},
        "repeat": {"min": 1},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    out = tmp_path / "out"
    assert run_cli(["sweep", str(tmp_path / "sweep.yaml"), "--out", str(out)]) == 1
    rows = RowStore(out).load()
    assert [(Path(row["config"]["model"]).stem, row["round"]) for row in rows] == [
        ("huge", 1),
        ("tiny", 1),
        ("tiny", 2),
    ]
    assert rows[0]["error"]["kind"] == "OutOfMemoryError" and rows[0]["error"]["exit_code"] == 5
    assert rows[1]["error"] is None and rows[2]["metrics"]["decode_tok_s"] > 0
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "2 cases, 1 failed." in report and "OutOfMemoryError: the model needs" in report
    assert "row 1 failed. OutOfMemoryError: the model needs" in capsys.readouterr().err


def test_heads_and_forms_of_the_step_reach_the_engine(tmp_path: Path) -> None:
    write_shape(tmp_path / "tiny.ini", "smollm2-135m", num_layer=2, vocab_size=320)
    text = (
        "schema: flexq-ft/sweep/1\nsynthetic_weights: true\ndevice: cpu\nmodel: tiny.ini\n"
        "matrix: {scheme: fp16, lm_head: [fp16, w8], step_kernel: [auto, on], prompt_tokens: 5,"
        " output_tokens: 4}\nexclude: [{lm_head: w8, step_kernel: on}]\nrepeat: {min: 1}\n"
    )
    (tmp_path / "sweep.yaml").write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    assert run_cli(["sweep", str(tmp_path / "sweep.yaml"), "--out", str(out)]) == 1
    floats, one_kernel, int8 = RowStore(out).load()
    for row in (floats, one_kernel, int8):
        validate(row, "sweep.json", "#/$defs/row")
    assert "step_kernel is on, and the device is the CPU" in one_kernel["error"]["message"]
    assert floats["model"]["lm_head"] == "fp16" and int8["model"]["lm_head"] == "w8"
    assert floats["machine"]["step_kernel_batch"] == 0
    saved = floats["metrics"]["weights_bytes"] - int8["metrics"]["weights_bytes"]
    assert saved == 320 * 576 - 4 * 320
    assert "lm_head w8" in (out / "report.md").read_text(encoding="utf-8")
