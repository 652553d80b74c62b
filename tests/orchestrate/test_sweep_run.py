"""Running a sweep: a row for every case, also the failed; resume; reports; commands that parse.

The case process is a stand-in that behaves as its model's name says, so that no model is loaded.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.sweep import run as run_module
from flexq_ft.orchestrate.sweep.command import parse_case, reproduce_command
from flexq_ft.orchestrate.sweep.plan import Case, plan_cases
from flexq_ft.orchestrate.sweep.report import markdown, newest_rows
from flexq_ft.orchestrate.sweep.run import SweepRun
from flexq_ft.orchestrate.sweep.spec import SCHEMA, load_spec
from flexq_ft.orchestrate.sweep.store import RowStore

ROOT = Path(__file__).parents[2]

STAND_IN = """
import os, pathlib, signal, sys, time
from flexq_ft.errors import OutOfMemoryError
from flexq_ft.orchestrate.cli.console import console
from flexq_ft.orchestrate.sweep.case import case_row
from flexq_ft.orchestrate.sweep.command import parse_case
import json

arguments = sys.argv[1 : sys.argv.index("--state")]
case = parse_case(arguments)
with open(os.environ["STAND_IN_LOG"], "a") as log:
    log.write(case.label() + "\\n")
name = pathlib.Path(case.model).name
error = None
if name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if name == "mute":
    sys.exit("the engine fell over")
if name == "slow":
    time.sleep(60)
if name == "hungry":
    error = OutOfMemoryError("needs 9 GB, 2 GB are free.", cause="weights").to_json()
samples = {"prefill_tok_s": [90.0, 110.0], "decode_tok_s": [10.0, 10.0],
           "ttft_ms": [9.0, 9.0], "tpot_ms": [9.0, 9.0]}
metrics = {"weights_bytes": 1_500_000, "peak_memory_bytes": 2_000_000, "prefill_tok_s": 100.0,
           "decode_tok_s": 10.0, "ttft_ms": 9.0, "tpot_ms": 9.0, "requests": 2,
           "warm_up_requests": 1, "threads": 2, "device": "cpu", "samples": samples}
result = {} if error else {"metrics": metrics, "quality": None}
console.out(json.dumps(case_row(case, result, error=error)))
"""


class Sweeper:
    """Sweeps in tmp_path with the stand-in; `started` lists the cases whose process ran."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = tmp_path
        self.out = tmp_path / "out"
        self.script = tmp_path / "stand_in.py"
        self.script.write_text(STAND_IN, encoding="utf-8")
        self._log = tmp_path / "started"
        monkeypatch.setenv("STAND_IN_LOG", str(self._log))
        monkeypatch.setattr(run_module, "CASE_PROCESS", (sys.executable, str(self.script)))

    def file(self, **content: Any) -> Path:
        path = self.folder / "sweep.yaml"
        path.write_text(yaml.safe_dump({"schema": SCHEMA, **content}), encoding="utf-8")
        return path

    def run(self, **content: Any) -> SweepRun:
        path = self.file(**content)
        return SweepRun(plan_cases(load_spec(path), base=self.folder), self.out, title="Sweep t")

    @property
    def started(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def sweeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweeper:
    return Sweeper(tmp_path, monkeypatch)


def test_failed_cases_are_rows_and_the_others_run(sweeper: Sweeper) -> None:
    models = ["fine", "hungry", "killed", "mute", "fine2"]
    rows = sweeper.run(matrix={"model": models}).run()
    assert [Path(row["config"]["model"]).name for row in rows] == models
    assert [row["error"] and row["error"]["kind"] for row in rows] == [
        None, "OutOfMemoryError", "LaunchError", "LaunchError", None,
    ]  # fmt: skip
    assert "signal 9" in rows[2]["error"]["message"]
    assert rows[3]["error"]["cause"] == "the engine fell over"
    assert [row["metrics"] is None for row in rows] == [False, True, True, True, False]


def test_resume_skips_finished_rows_and_runs_failed_ones_again(sweeper: Sweeper) -> None:
    matrix = {"model": ["fine", "hungry"], "batch": [1, 2]}
    sweeper.run(matrix=matrix).run()
    assert len(sweeper.started) == 4
    again = sweeper.run(matrix=matrix)
    assert [case.model.endswith("hungry") for case in again.pending()] == [True, True]
    assert len(again.run()) == 4
    assert len(sweeper.started) == 6
    sweeper.run(matrix=matrix).run(force=True)
    assert len(sweeper.started) == 10


def test_a_new_axis_value_runs_alone(sweeper: Sweeper) -> None:
    sweeper.run(model="fine", matrix={"batch": [1, 2]}).run()
    rows = sweeper.run(model="fine", matrix={"batch": [1, 2, 3]}).run()
    assert len(rows) == 3
    assert len(sweeper.started) == 3


def test_torn_last_line_is_a_case_that_never_ran(sweeper: Sweeper) -> None:
    run = sweeper.run(model="fine", matrix={"batch": [1, 2]})
    run.run()
    whole = run.store.path.read_bytes()
    run.store.path.write_bytes(whole[:-20])
    assert [case.batch for case in run.pending()] == [2]
    assert [row["config"]["batch"] for row in run.run()] == [1, 2]
    assert len(run.store.path.read_bytes().splitlines()) == 2


def test_broken_line_in_the_middle_is_an_error(sweeper: Sweeper) -> None:
    run = sweeper.run(model="fine", matrix={"batch": [1, 2]})
    run.run()
    lines = run.store.path.read_bytes().splitlines(keepends=True)
    run.store.path.write_bytes(b"{}\n" + lines[1])
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1"):
        run.pending()


def test_report_is_rebuilt_from_the_rows(sweeper: Sweeper) -> None:
    run = sweeper.run(matrix={"model": ["fine", "hungry"], "scheme": ["fp16", "w6a8"]})
    run.run()
    first = run.report_path.read_text(encoding="utf-8")
    run.report_path.unlink()
    assert markdown(newest_rows(RowStore(sweeper.out).load()), title="Sweep t") == first
    run.write_report()
    assert run.report_path.read_text(encoding="utf-8") == first
    assert "| 2 | fine | w6ax (w6a8) | 1 | 1 | 128+128 | 1.5 | 2 | 100.0 ±10% |" in first
    assert "OutOfMemoryError: needs 9 GB" in first
    for row in RowStore(sweeper.out).load():
        assert row["command"] in first


def test_report_keeps_the_newest_row_of_a_configuration(sweeper: Sweeper) -> None:
    (sweeper.folder / "fine").write_bytes(b"old")
    sweeper.run(model="fine", matrix={}).run()
    (sweeper.folder / "fine").write_bytes(b"replaced")
    run = sweeper.run(model="fine", matrix={})
    assert len(run.run()) == 1
    assert len(run.store.load()) == 2
    assert "1 cases, 0 failed" in run.report_path.read_text(encoding="utf-8")


def test_row_matches_the_schema(sweeper: Sweeper) -> None:
    schema = json.loads((ROOT / "configs" / "schemas" / "sweep.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator({"$ref": "#/$defs/row", "$defs": schema["$defs"]})
    rows = sweeper.run(matrix={"model": ["fine", "hungry", "killed"]}).run()
    for row in rows:
        validator.validate(row)


@pytest.mark.parametrize("name", ["demo", "quick"])
def test_shipped_sweep_matches_the_schema(name: str) -> None:
    schema = json.loads((ROOT / "configs" / "schemas" / "sweep.json").read_text(encoding="utf-8"))
    file = ROOT / "configs" / "sweeps" / f"{name}.yaml"
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(file.read_text()))


def test_command_of_a_row_parses_to_its_case(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    (tmp_path / "a text.txt").write_text("words", encoding="utf-8")
    path.write_text(
        yaml.safe_dump(
            {
                "schema": SCHEMA,
                "model": "m o'del",
                "matrix": {"scheme": ["fp16", "w6a16"], "dtype": "bf16", "tp": 2, "batch": 3},
                "include": [{}],
                "repeat": {"min": 2, "max": 9, "until_cv": 0.05},
                "quality": {
                    "ppl": {"text": "a text.txt", "protocol": "raw", "window": 7},
                    "agreement_with": "flexq",
                },
                "seed": 5,
            }
        ),
        encoding="utf-8",
    )
    cases = plan_cases(load_spec(path), base=tmp_path)
    assert len(cases) == 3
    for case in cases:
        words = shlex.split(reproduce_command(case))
        assert words[:3] == ["python", "-m", "flexq_ft.orchestrate.sweep.case"]
        assert parse_case(words[3:]) == case


def test_interrupt_keeps_finished_rows(sweeper: Sweeper) -> None:
    file = sweeper.file(matrix={"model": ["fine", "slow", "fine2"]})
    script = (
        "import sys; from flexq_ft.orchestrate.sweep import run;"
        f"run.CASE_PROCESS = (sys.executable, {str(sweeper.script)!r});"
        "from flexq_ft.orchestrate.cli.main import run_cli;"
        f"sys.exit(run_cli(['sweep', {str(file)!r}, '--out', {str(sweeper.out)!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not any("slow" in line for line in sweeper.started):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    rows = RowStore(sweeper.out).load()
    assert [Path(row["config"]["model"]).name for row in rows] == ["fine"]
    assert "fine" in (sweeper.out / "report.md").read_text(encoding="utf-8")


def test_dry_run_lists_cases_and_runs_none(
    sweeper: Sweeper, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweeper.file(model="fine", matrix={"scheme": ["fp16", "flexq"], "batch": "1-4*2"})
    assert run_cli(["sweep", str(file), "--out", str(sweeper.out), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == "6 cases, 6 to run."
    assert output.count("w6ax flexq") == 3
    assert not sweeper.out.exists()
    assert run_cli(["sweep", str(file), "--out", str(sweeper.out), "--dry-run", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [parse_case(shlex.split(item["command"])[3:]).batch for item in results[:3]] == [1, 2, 4]


def test_sweep_verb_exit_code_and_envelope(
    sweeper: Sweeper, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweeper.file(matrix={"model": ["fine", "hungry"]})
    arguments = ["sweep", str(file), "--out", str(sweeper.out)]
    assert run_cli([*arguments, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "flexq-ft/sweep-result/1"
    assert [row["error"] is None for row in document["results"]] == [True, False]
    file = sweeper.file(matrix={"model": ["fine"]})
    assert run_cli(arguments) == 0
    captured = capsys.readouterr()
    assert "tok/s" in captured.out
    assert "100.0" in captured.out
    assert "finished already" in captured.err


def test_sweep_verb_refuses_an_unknown_key(
    sweeper: Sweeper, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweeper.file(model="fine", matrix={"batchs": 1})
    assert run_cli(["sweep", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "did you mean 'batch'?" in captured.err


def test_case_defaults_are_those_of_a_bare_command() -> None:
    assert parse_case(["m", "--scheme", "w6ax"]) == Case(model="m", scheme="w6ax", policy="flexq")
