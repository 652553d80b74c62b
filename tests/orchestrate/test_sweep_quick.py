"""configs/sweeps/quick.yaml as it is shipped: eight cases in two rounds of real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.sweep.store import RowStore
from tests.orchestrate.schemas import validate

QUICK = Path(__file__).parents[2] / "configs" / "sweeps" / "quick.yaml"


@pytest.mark.slow
def test_quick_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
