"""doctor: it always reports, whatever is broken, and says what to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flexq_ft.converter.options import SCHEMES
from flexq_ft.orchestrate import doctor, launcher, mpirun
from flexq_ft.orchestrate.cli.main import run_cli
from tests.orchestrate.schemas import validate

Capture = pytest.CaptureFixture[str]


def finding(name: str, findings: list[doctor.Finding]) -> doctor.Finding:
    (found,) = [f for f in findings if f.name == name]
    return found


def test_the_report_names_every_scheme_and_its_self_test() -> None:
    findings = doctor.diagnose()
    for scheme in SCHEMES:
        assert finding(scheme, findings).status == "ok", finding(scheme, findings)
        assert "of NumPy" in finding(scheme, findings).value


def test_cuda_is_absent_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from flexq_ft import _native

    build = {**_native.build_info(), "cuda": False}
    monkeypatch.setattr(_native, "build_info", lambda: build)
    cuda = finding("cuda", doctor.diagnose())
    assert cuda.status == "no" and "CPU" in cuda.why


def test_json_is_what_the_schema_says(capsys: Capture) -> None:
    assert run_cli(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    validate(document, "doctor.json")
    assert {row["section"] for row in document["results"]} >= {"build", "mpi", "schemes"}


def test_text_goes_to_stdout_and_errors_to_stderr(capsys: Capture) -> None:
    assert run_cli(["doctor"]) == 0
    captured = capsys.readouterr()
    assert "self-test" in captured.out and captured.err == ""


def test_a_missing_requirement_is_exit_4_after_the_report(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexq_ft import _native

    monkeypatch.setattr(_native, "gpus", list)
    assert run_cli(["doctor", "--require", "cuda", "--json"]) == 4
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    validate(document, "doctor.json")
    assert document["error"]["kind"] == "DeviceError" and document["results"]
    assert "cuda" in captured.err


def test_an_unknown_requirement_is_a_usage_error(capsys: Capture) -> None:
    assert run_cli(["doctor", "--require", "rocm"]) == 2
    assert "mpi, cuda, nccl" in capsys.readouterr().err


def take_mpirun_away(monkeypatch: pytest.MonkeyPatch) -> None:
    for user in (mpirun, launcher):
        monkeypatch.setattr(user, "find_mpirun", lambda: None)


def test_without_mpirun_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    take_mpirun_away(monkeypatch)
    findings = doctor.diagnose(ranks=2)
    for name in ("mpirun", "--tp 2"):
        assert finding(name, findings).status == "no"
        assert finding(name, findings).hint == "pip install 'flexq-ft[mpi]'"
    assert doctor.unmet("mpi", findings)


def test_one_rank_needs_no_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    take_mpirun_away(monkeypatch)
    assert finding("--tp 1", doctor.diagnose(ranks=1)).status == "ok"


def test_a_native_module_that_cannot_be_loaded_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "flexq_ft._native", None)
    assert run_cli(["doctor"]) == 0
    assert "cannot be loaded" in capsys.readouterr().out


def test_the_cache_says_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert doctor._disk().endswith(f"GB free at {tmp_path / 'flexq-ft'}")
    for name in (f"a-{0:016x}/1-gpu", f"b-{1:016x}/2-gpu"):
        folder = tmp_path / "flexq-ft" / name
        folder.mkdir(parents=True)
        with (folder / "model.bin").open("wb") as file:
            file.truncate(600_000_000)
    assert doctor._disk().endswith("; converted models: 2, 1.2 GB (flexq-ft cache ls)")


@pytest.mark.parametrize("probe", ["_memory", "_disk", "_driver", "_cuda", "_mpirun"])
def test_a_probe_that_breaks_is_a_finding(probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, probe, broken)
    broken_ones = [f for f in doctor.diagnose() if "no such thing" in f.value]
    assert len(broken_ones) == 1 and broken_ones[0].status == "no"


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from flexq_ft.orchestrate import self_test

    right = self_test._TESTS["w6ax"]

    def wrong(x: Any, w: Any) -> Any:
        got, expected = right(x, w)
        got[-1, -1] += 1e-3
        return got, expected

    monkeypatch.setitem(self_test._TESTS, "w6ax", wrong)
    assert finding("w6ax", doctor.diagnose()).status == "no"


def test_variables_in_force_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXQ_FT_RUN_TP", "2")
    assert finding("FLEXQ_FT_RUN_TP", doctor.diagnose()).value == "2"
