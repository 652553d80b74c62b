"""Running a sweep: a row for every case, also the failed; resume; reports; commands that parse.

The case process is a stand-in that behaves as its model's name says, so that no model is loaded.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import yaml

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate import devices
from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.compare.result import load_result
from flexq_ft.orchestrate.sweep import run as run_module
from flexq_ft.orchestrate.sweep.case_config import Case
from flexq_ft.orchestrate.sweep.command import reproduce_command
from flexq_ft.orchestrate.sweep.metrics import finished_metrics, joined
from flexq_ft.orchestrate.sweep.plan import plan_cases
from flexq_ft.orchestrate.sweep.report import markdown, newest_rows
from flexq_ft.orchestrate.sweep.run import SweepRun, turns_of
from flexq_ft.orchestrate.sweep.spec import SCHEMA, load_spec
from flexq_ft.orchestrate.sweep.store import RowStore
from tests.orchestrate.schemas import validate
from tests.orchestrate.sweeps import parsed_case

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.stem for path in (ROOT / "configs" / "sweeps").glob("*.yaml"))

STAND_IN = """
import os, pathlib, signal, sys, time
from flexq_ft.errors import OutOfMemoryError
from flexq_ft.orchestrate.cli.console import console
from flexq_ft.orchestrate.sweep.case import case_row, command
from flexq_ft.orchestrate.sweep.command import case_from_options
import json

case = case_from_options(command.make_context("case", sys.argv[1:]).params)
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
if name == "wait" and not (pathlib.Path(__file__).parent / "go on").exists():
    time.sleep(10)
if name == "hungry":
    error = OutOfMemoryError("needs 9 GB, 2 GB are free.", cause="weights").to_json()
from flexq_ft.orchestrate.sweep.metrics import finished_metrics
slower = 1.0 if case.scheme == "w6ax" else 2.0
samples = {"prefill_tok_s": [90.0, 110.0], "decode_tok_s": [10.0, 10.0],
           "ttft_ms": [9.0, 9.0], "tpot_ms": [9.0, 9.0],
           "step_ms": [[slower] * (case.output_tokens - 1)] * 2}
for tokens in case.lengths():
    samples[f"latency_{tokens}_ms"] = [slower * tokens] * 2
measured = {"weights_bytes": 1_500_000, "peak_memory_bytes": 2_000_000, "requests": 2,
            "memory_bytes": {"weights": 1_500_000, "kv_cache": 1, "activations": 1, "workspace": 1,
                             "process": None, "polled": None},
            "lengths": [{"output_tokens": n, "bytes_per_step": 1e6} for n in case.lengths()],
            "batch": case.batch, "read_bandwidth_gb_s": 2.0, "warm_up_steps": 32}
result = {} if error else {
    "metrics": finished_metrics(samples, measured), "quality": None, "flags": [],
    "model": {"name": name, "digest": "sha256:" + 64 * "0", "scheme": case.scheme or "fp16",
              "policy": None, "dtype": "fp16", "lm_head": "fp16", "parameters": 1},
    "machine": {"device": "cpu", "name": "a machine", "ranks": 1, "threads": 2, "gpus_before": [],
                "gpus_after": [], "gemm_note": "", "step_note": "", "step_kernel_batch": 0}}
console.out("loading\\ntimed")
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
        spec = load_spec(path)
        cases = plan_cases(spec, base=self.folder)
        return SweepRun(cases, self.out, title="Sweep t", rounds=spec.rounds)

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
    assert [turn.case.model.endswith("hungry") for turn in again.pending()] == [True, True]
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
    assert [turn.case.batch for turn in run.pending()] == [2]
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
    rows = [joined(rounds, rounds=1) for rounds in RowStore(sweeper.out).cases().values()]
    assert markdown(newest_rows(rows), title="Sweep t") == first
    run.write_report()
    assert run.report_path.read_text(encoding="utf-8") == first
    assert "| 2 | fine | w6ax (w6a8) | 1 | 1 | 128+128 | 1.5 | 2 | 100.0 ±10% |" in first
    ratios = "128 | 2.000 | - | - | - | 2 | 1.000 | - |"
    assert f"| fine | 1 | 1 | 128+128 | w6ax (w6a8) | {ratios}" in first
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


@pytest.mark.parametrize(
    "edited", [{"repeat": {"min": 2, "max": 2}}, {"latency_at": [4]}, {"seed": 7}]
)
def test_an_edited_file_measures_its_cases_anew_and_the_report_has_them_once(
    sweeper: Sweeper, edited: dict[str, Any]
) -> None:
    matrix = {"batch": [1, 2]}
    sweeper.run(model="fine", matrix=matrix).run()
    run = sweeper.run(model="fine", matrix=matrix, **edited)
    rows = run.run()
    assert len(sweeper.started) == 4 and run.other_rows() == []
    assert "2 cases, 0 failed" in run.report_path.read_text(encoding="utf-8")
    # Back again: nothing to run, and the report has this sweep's rows, not the later ones.
    run = sweeper.run(model="fine", matrix=matrix)
    again = run.run()
    assert len(sweeper.started) == 4 and run.other_rows() == []
    text = run.report_path.read_text(encoding="utf-8")
    assert all(row["command"] in text for row in again)
    assert not any(row["command"] in text for row in rows)
    entries = load_result(sweeper.out).entries
    assert len(entries) == 2
    # Measured again, they are the newest in the folder too.
    again = run.run(force=True)
    assert [row["command"] for row in newest_rows(run.store.load())] == [
        row["command"] for row in again
    ]


def test_cases_that_the_file_has_no_longer_stay_behind_its_own_and_are_counted(
    sweeper: Sweeper, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweeper.folder / "fine").write_bytes(b"")
    sweeper.run(model="fine", matrix={"batch": [1, 2, 3]}).run()
    file = sweeper.file(model="fine", matrix={"batch": [4, 2]})
    assert run_cli(["sweep", str(file), "--out", str(sweeper.out)]) == 0
    assert "2 cases of this folder that FILE does not have" in capsys.readouterr().err
    lines = (sweeper.out / "report.csv").read_text(encoding="utf-8").splitlines()
    batch = lines[0].split(",").index("batch")
    assert [line.split(",")[batch] for line in lines[1:]] == ["4", "2", "1", "3"]


def test_a_row_of_another_shape_is_named_with_its_line(sweeper: Sweeper) -> None:
    run = sweeper.run(model="fine", matrix={"batch": [1]})
    run.run()
    (row,) = run.store.load()
    del row["flags"]
    run.store.path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: not a row") as caught:
        run.pending()
    assert "flags" in caught.value.cause


def test_row_matches_the_schema(sweeper: Sweeper) -> None:
    run = sweeper.run(matrix={"model": ["fine", "hungry", "killed"]})
    run.run()
    rows = run.store.load()
    assert len(rows) == 3
    for row in rows:
        validate(row, "sweep.json", "#/$defs/row")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sweep_matches_the_schema(name: str) -> None:
    file = ROOT / "configs" / "sweeps" / f"{name}.yaml"
    validate(yaml.safe_load(file.read_text()), "sweep.json")


def test_command_of_a_row_parses_to_its_case(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    (tmp_path / "a text.txt").write_text("words", encoding="utf-8")
    path.write_text(
        yaml.safe_dump(
            {
                "schema": SCHEMA,
                "model": "m o'del",
                "matrix": {"scheme": ["fp16", "w6a16"], "dtype": "bf16", "tp": 2, "batch": 3},
                "include": [
                    {},
                    {"scheme": "w8a8", "smooth": True},
                    {"scheme": "w6a8", "rotate": True, "rounding": "gptq"},
                ],
                "calibration": {"text": "a text.txt", "sequences": 3, "length": 40},
                "repeat": {"min": 2, "max": 9, "until_cv": 0.05},
                "quality": {
                    "ppl": {"text": "a text.txt", "protocol": "raw", "window": 7},
                    "agreement_with": "flexq",
                },
                "latency_at": [7, 9],
                "seed": 5,
            }
        ),
        encoding="utf-8",
    )
    cases = plan_cases(load_spec(path), base=tmp_path)
    shape = {"schema": SCHEMA, "model": "llama-7b", "synthetic_weights": True, "matrix": {}}
    path.write_text(yaml.safe_dump(shape), encoding="utf-8")
    cases += plan_cases(load_spec(path), base=tmp_path)
    assert len(cases) == 6
    assert cases[0].latency_at == (7, 9) and cases[5].synthetic_weights
    for case in cases:
        words = shlex.split(reproduce_command(case))
        assert words[:3] == ["python", "-m", "flexq_ft.orchestrate.sweep.case"]
        assert parsed_case(words[3:]) == case


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
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and b"the same command goes on" in err
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
    document = json.loads(capsys.readouterr().out)
    validate(document, "sweep-result.json")
    results = document["results"]
    shown = [parsed_case(shlex.split(item["command"])[3:]) for item in results[:3]]
    assert [case.batch for case in shown] == [1, 2, 4]


def test_a_folder_that_cannot_be_made_stops_the_sweep_before_its_first_case(
    sweeper: Sweeper, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweeper.file(matrix={"model": "fine"})
    assert run_cli(["sweep", str(file), "--out", str(file / "out")]) == 2
    assert f"the folder {file / 'out'} cannot be written" in capsys.readouterr().err
    assert not sweeper.started


def test_two_sweeps_do_not_write_one_folder(sweeper: Sweeper) -> None:
    run = sweeper.run(matrix={"model": ["fine"]})
    run.run()
    with run.store.lock(), pytest.raises(ConfigError, match="another sweep is writing"):
        run.run(force=True)
    assert len(sweeper.started) == 1
    with run.store.lock():
        assert len(run.run()) == 1  # a finished one writes no row


def test_what_another_sweep_finished_before_the_folder_was_free_is_not_run_again(
    sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sweeper.run(model="fine", matrix={"batch": [1, 2]})
    other = sweeper.run(model="fine", matrix={"batch": [1]})
    lock = run.store.lock

    def after_the_other() -> BinaryIO:
        other.run()
        return lock()

    monkeypatch.setattr(run.store, "lock", after_the_other)
    numbers: list[int] = []
    rows = run.run(observe=lambda number, turn, row: numbers.append(number))
    assert [line.split("batch ")[1][0] for line in sweeper.started] == ["1", "2"]
    assert (run.total, numbers) == (1, [1, 1])
    assert [row["config"]["batch"] for row in rows] == [1, 2]


def test_what_must_fail_is_said_before_any_case_runs(
    sweeper: Sweeper, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tools.checkpoints import make_checkpoint

    model = make_checkpoint(sweeper.folder / "there", hidden=64, heads=4, positions=128)
    axes = {"tp": [1, 3], "prompt_tokens": [16, 120], "output_tokens": 16, "scheme": "flexq"}
    file = sweeper.file(matrix={"model": [model.name, "lost"], **axes})
    capsys.readouterr()  # what transformers said
    assert run_cli(["sweep", str(file), "--dry-run"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"warning: 1 of 8 cases will fail: 136 tokens do not fit the 128 positions of {model}",
        "warning: 2 of 8 cases will fail: tensor parallel size 3 does not divide the 4 attention"
        " heads of there",
        f"warning: 4 of 8 cases will fail: {sweeper.folder / 'lost'} does not exist",
    ]
    (sweeper.folder / "done" / "1-gpu").mkdir(parents=True)
    file = sweeper.file(model="done", matrix={"rotate": True})
    assert run_cli(["sweep", str(file), "--dry-run"]) == 0
    assert "1 of 1 cases will fail: " in (err := capsys.readouterr().err)
    assert "done is converted already, and cannot become rotated" in err
    shape = sweeper.file(model="llama-7b", synthetic_weights=True, matrix={"prompt_tokens": "2k"})
    assert run_cli(["sweep", str(shape), "--dry-run"]) == 0
    assert "1 of 1 cases will fail: 2,176 tokens do not fit" in capsys.readouterr().err


def test_gpus_that_are_not_here_are_foreseen(
    sweeper: Sweeper, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: [{"name": "one"}])
    file = sweeper.file(model="llama-7b", synthetic_weights=True, matrix={"tp": [1, 2]})
    assert run_cli(["sweep", str(file), "--dry-run", "--device", "cuda"]) == 0
    expected = "warning: 1 of 2 cases will fail: --device cuda: 2 ranks need a GPU each"
    assert expected in capsys.readouterr().err
    assert run_cli(["sweep", str(file), "--dry-run"]) == 0
    assert "will fail" not in capsys.readouterr().err


def test_a_failed_case_is_said_with_its_cause(
    sweeper: Sweeper, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweeper.file(model="mute", matrix={})
    assert run_cli(["sweep", str(file), "--out", str(sweeper.out)]) == 1
    assert "without a result. the engine fell over" in capsys.readouterr().err


def test_sweep_verb_exit_code_and_envelope(
    sweeper: Sweeper, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweeper.file(matrix={"model": ["fine", "hungry"]})
    arguments = ["sweep", str(file), "--out", str(sweeper.out)]
    assert run_cli([*arguments, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    validate(document, "sweep-result.json")
    assert [row["error"] is None for row in document["results"]] == [True, False]
    file = sweeper.file(matrix={"model": ["fine"]})
    assert run_cli([*arguments, "--plots"]) == 0
    captured = capsys.readouterr()
    assert "tok/s" in captured.out
    assert "100.0" in captured.out
    assert "finished already" in captured.err
    assert len(sweeper.started) == 2


def test_sweep_verb_refuses_an_unknown_key(
    sweeper: Sweeper, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweeper.file(model="fine", matrix={"batchs": 1})
    assert run_cli(["sweep", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "did you mean 'batch'?" in captured.err


def test_case_defaults_are_those_of_a_bare_command() -> None:
    assert parsed_case(["m", "--scheme", "w6ax"]) == Case(model="m", scheme="w6ax", policy="flexq")


def table_of(run: SweepRun) -> list[str]:
    """The report without times of day and seconds."""
    text = run.report_path.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("|")]


def test_each_round_starts_every_case_once_in_rotated_order() -> None:
    cases = [Case(model=name) for name in "abcde"]
    turns = turns_of(cases, rounds=3)
    assert ["".join(t.case.model for t in turns if t.round == n) for n in (1, 2, 3)] == [
        "abcde",
        "bcdea",
        "deabc",
    ]


def test_rounds_are_joined_by_their_samples(sweeper: Sweeper) -> None:
    run = sweeper.run(model="fine", rounds=2, matrix={"batch": [1, 2]}, latency_at=[16])
    rows = run.run()
    assert [line.split("batch ")[1][0] for line in sweeper.started] == ["1", "2", "2", "1"]
    assert [(row["rounds"], row["metrics"]["requests"], row["flags"]) for row in rows] == [
        (2, 4, []),
        (2, 4, []),
    ]
    for row in rows:
        assert len(row["metrics"]["samples"]["latency_16_ms"]) == 4
        assert [one["output_tokens"] for one in row["metrics"]["lengths"]] == [16, 128]
        assert row["metrics"]["lengths"][0]["latency_ms"] == 32.0
        # 1e6 bytes at 2 GB/s are 0.5 ms, and a step took 2.
        assert row["metrics"]["lengths"][0]["share_of_floor"] == pytest.approx(0.25)
    assert "| 16: 32, 128: 256 |" in run.report_path.read_text(encoding="utf-8")


def test_a_missing_round_is_said(sweeper: Sweeper) -> None:
    run = sweeper.run(model="fine", rounds=2, matrix={})
    run.run()
    lines = run.store.path.read_text().splitlines(keepends=True)
    run.store.path.write_text(lines[0])
    assert [row["flags"] for row in run.rows()] == [["incomplete"]]
    assert [turn.round for turn in run.pending()] == [2]


def test_a_case_that_failed_has_no_turn_in_later_rounds(sweeper: Sweeper) -> None:
    rows = sweeper.run(rounds=3, matrix={"model": ["fine", "hungry"]}).run()
    assert sorted(line.split()[0] for line in sweeper.started) == ["fine"] * 3 + ["hungry"]
    assert [(row["rounds"], row["error"] is None) for row in rows] == [(3, True), (0, False)]


def test_a_round_that_failed_keeps_the_numbers_of_the_others() -> None:
    good = {
        "error": None, "flags": ["busy"], "seconds": 1.0, "machine": {"name": "a machine"},
        "environment": {"version": "1", "commit": "c"},
        "metrics": finished_metrics(
            {"prefill_tok_s": [1.0], "ttft_ms": [1.0], "latency_1_ms": [4.0], "step_ms": [[]]},
            {
                "peak_memory_bytes": 5, "requests": 1, "read_bandwidth_gb_s": 1.0, "batch": 1,
                "lengths": [{"output_tokens": 1, "bytes_per_step": None}],
            },
        ),
    }  # fmt: skip
    bad = {"error": {"kind": "LaunchError"}, "flags": [], "seconds": 2.0, "metrics": None}
    row = joined([good, bad], rounds=2)
    assert row["error"] == {"kind": "LaunchError"} and row["rounds"] == 1
    assert row["flags"] == ["busy", "incomplete"] and row["seconds"] == 3.0
    assert row["metrics"]["lengths"][0]["latency_ms"] == 4.0
    assert row["metrics"]["lengths"][0]["decode_tok_s"] is None
    newer = {**good, "environment": {"version": "1", "commit": "d"}}
    assert joined([good, newer], rounds=2)["flags"] == ["busy", "mixed"]
    assert joined([good, good], rounds=2)["flags"] == ["busy"]


def test_max_minutes_stops_between_cases_and_the_rest_follows(
    sweeper: Sweeper, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (sweeper.folder / "fine").mkdir()
    file = sweeper.file(model="fine", rounds=2, matrix={"batch": [1, 2, 3]})
    arguments = ["sweep", str(file), "--out", str(sweeper.out)]
    clock = itertools.count(0.0, 10.0)  # a turn looks at it three times, and once before
    monkeypatch.setattr(run_module.time, "monotonic", lambda: next(clock))
    assert run_cli([*arguments, "--max-minutes", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    validate(document, "sweep-result.json")
    assert document["warnings"] == [
        "stopped after 1 minutes with 4 of 6 still to run; the same command goes on."
    ]
    assert [row["flags"] for row in document["results"]] == [["incomplete"]] * 2
    assert len(sweeper.started) == 2
    assert run_cli(arguments) == 0
    assert len(sweeper.started) == 6


def test_a_killed_sweep_resumes_and_ends_with_the_same_table(sweeper: Sweeper) -> None:
    content = {"rounds": 2, "matrix": {"model": ["fine", "wait", "hungry"], "batch": [1, 2]}}
    file = sweeper.file(**content)
    script = (
        "import sys; from flexq_ft.orchestrate.sweep import run;"
        f"run.CASE_PROCESS = (sys.executable, {str(sweeper.script)!r});"
        "from flexq_ft.orchestrate.cli.main import run_cli;"
        f"sys.exit(run_cli(['sweep', {str(file)!r}, '--out', {str(sweeper.out)!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any("wait" in line for line in sweeper.started):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert len(RowStore(sweeper.out).load()) == 2
    (sweeper.folder / "go on").touch()
    killed = sweeper.run(**content)
    killed.run()
    sweeper.out = sweeper.folder / "whole"
    whole = sweeper.run(**content)
    whole.run()
    assert table_of(killed) == table_of(whole)
    assert len(table_of(whole)) > 6


def test_a_case_ends_with_the_sweep_that_started_it(tmp_path: Path) -> None:
    """Else it would hold the device that the resumed sweep needs."""
    script = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', "
        "'import os, time; from flexq_ft.orchestrate.sweep.case import end_with;"
        "end_with(os.getppid()); print(os.getpid(), flush=True); time.sleep(60)'],"
        "start_new_session=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    assert parent.stdout.read() == ""  # ends when the child does
    with pytest.raises(ProcessLookupError):
        while time.sleep(0.05) is None:
            os.kill(pid, 0)
    parent.wait()


def test_csv_has_a_line_for_each_length(sweeper: Sweeper) -> None:
    run = sweeper.run(matrix={"model": ["fine", "hungry"]}, latency_at=[16, 32])
    run.run()
    lines = list(csv.DictReader((sweeper.out / "report.csv").read_text().splitlines()))
    shown = [(line["model"], line["output_tokens"], line["latency_ms"]) for line in lines]
    assert [(Path(model).name, *rest) for model, *rest in shown] == [
        ("fine", "16", "32.0"),
        ("fine", "32", "64.0"),
        ("fine", "128", "256.0"),
        ("hungry", "128", ""),
    ]
    assert lines[3]["error"].startswith("OutOfMemoryError: needs 9 GB")
