"""One test for each exit code, and what an error looks like."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flexq_ft.errors as errors
from flexq_ft.orchestrate.cli import load
from flexq_ft.orchestrate.cli.main import run_cli
from tests.orchestrate.fakes import FakeNative, says

Use = Callable[..., list[dict[str, Any]]]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def fail_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Opening any model raises this."""

    def use(error: BaseException) -> None:
        def make(model: Path, **keywords: Any) -> None:
            raise error

        monkeypatch.setattr(load, "LLM", make)

    return use


Fail = Callable[[BaseException], None]


def test_exit_code_0_when_all_is_well(use_model: Use) -> None:
    use_model(says("hi"))
    assert run_cli(["run", "m", "q"]) == 0


def test_exit_code_1_for_what_nobody_foresaw(fail_with: Fail, capsys: Capture) -> None:
    fail_with(RuntimeError("surprise"))
    assert run_cli(["run", "m", "q"]) == 1
    err = capsys.readouterr().err
    assert "error: RuntimeError: surprise" in err and "--debug" in err and "Traceback" not in err


def test_exit_code_2_for_flags(capsys: Capture) -> None:
    assert run_cli(["run", "m", "q", "--scheme", "int4"]) == 2
    assert "int4" in capsys.readouterr().err


def test_exit_code_2_for_configuration(capsys: Capture) -> None:
    assert run_cli(["run", "/no/such/model", "q"]) == 2
    assert "/no/such/model does not exist" in capsys.readouterr().err


def test_exit_code_2_for_an_unknown_verb_and_for_none(capsys: Capture) -> None:
    assert run_cli(["rnu"]) == 2
    assert run_cli([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Usage" in captured.err


def test_exit_code_3_for_weights(fail_with: Fail) -> None:
    fail_with(errors.WeightError("short file"))
    assert run_cli(["run", "m", "q"]) == 3


@pytest.mark.parametrize("kind", [errors.DeviceError, errors.LaunchError])
def test_exit_code_4_for_devices_and_launches(
    fail_with: Fail, kind: type[errors.FlexQFtError]
) -> None:
    fail_with(kind("not there"))
    assert run_cli(["run", "m", "q"]) == 4


@pytest.mark.parametrize("error", [errors.OutOfMemoryError("too big"), MemoryError()])
def test_exit_code_5_for_memory(fail_with: Fail, error: BaseException) -> None:
    fail_with(error)
    assert run_cli(["run", "m", "q"]) == 5


def test_exit_code_130_for_an_interrupt(fail_with: Fail, capsys: Capture) -> None:
    fail_with(KeyboardInterrupt())
    assert run_cli(["run", "m", "q"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_exit_code_130_for_a_real_ctrl_c() -> None:
    code = (
        "import time, sys; from flexq_ft.orchestrate.cli import load, main\n"
        "def wait(model, **keywords):\n"
        "    print('ready', file=sys.stderr, flush=True); time.sleep(60)\n"
        "load.LLM = wait\n"
        "sys.exit(main.run_cli(['run', 'm', 'q']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err


def test_a_second_ctrl_c_ends_a_native_call_that_the_first_waits_for() -> None:
    code = (
        "import hashlib, sys, threading; from flexq_ft.orchestrate.cli import load, main\n"
        "def wait(model, **keywords):\n"
        "    threading.Timer(0.5, sys.stderr.write, ['ready\\n']).start()\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
        "load.LLM = wait; sys.argv = ['flexq-ft', 'run', 'm', 'q']; main.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert "Ctrl-C again ends at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


@pytest.mark.parametrize("busy", ["pass", "re.match('(a+)+$', 'a' * 24 + 'b')"])
def test_ctrl_c_that_is_handled_counts_no_longer(busy: str) -> None:
    """Also where the watching thread learns of it late, as no other may run meanwhile."""
    code = (
        "import re, sys, time; from flexq_ft.orchestrate.cli import interrupts\n"
        "interrupts.PATIENCE_S = 0.05; interrupts.watch_interrupts()\n"
        "for _ in range(5):\n"
        "    try:\n"
        "        print('ready', file=sys.stderr, flush=True); time.sleep(60)\n"
        f"    except KeyboardInterrupt: {busy}; time.sleep(0.3)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for _ in range(5):
        assert process.stderr.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0 and process.stderr.read() == ""


def test_an_error_is_a_sentence_a_cause_and_a_way_out(fail_with: Fail, capsys: Capture) -> None:
    fail_with(errors.WeightError("it is bad.", cause="17 != 18.", hint="mend it", rank=1, host="h"))
    run_cli(["run", "m", "q"])
    expected = "error: it is bad.\n  rank:  1 on h\n  cause: 17 != 18.\n  Try:   mend it\n"
    assert capsys.readouterr().err == expected


def test_debug_shows_the_traceback(fail_with: Fail, capsys: Capture) -> None:
    fail_with(errors.WeightError("it is bad."))
    run_cli(["run", "m", "q", "--debug"])
    err = capsys.readouterr().err
    assert "Traceback" in err and err.rstrip().endswith("error: it is bad.")


def test_quiet_still_shows_errors(fail_with: Fail, capsys: Capture) -> None:
    fail_with(errors.WeightError("it is bad."))
    run_cli(["run", "m", "q", "-q"])
    assert "it is bad" in capsys.readouterr().err


def test_an_error_in_the_middle_of_an_answer_has_its_code(use_model: Use) -> None:
    use_model(FakeNative(says("hi"), step_error=errors.WeightError("NaN in the logits")))
    assert run_cli(["run", "m", "q"]) == 3


def test_only_rank_0_speaks(
    fail_with: Fail, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(errors.WeightError("it is bad."))
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert run_cli(["run", "m", "q", "--tp", "4"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_python_and_cpp_agree_on_exit_codes() -> None:
    from flexq_ft import _native

    mine = {name: getattr(errors, name).exit_code for name in _native.ERROR_EXIT_CODES}
    assert mine == _native.ERROR_EXIT_CODES


def test_stdout_that_cannot_be_written_is_a_failure() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = [sys.executable, "-m", "flexq_ft.orchestrate", "--version"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=os.environ
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: stdout: No space left on device\n")
    assert done.stderr.count("error:") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_standard_stream_that_was_never_open_is_no_failure(closed: str) -> None:
    command = [sys.executable, "-m", "flexq_ft.orchestrate", "--version"]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_character_that_the_terminal_does_not_have_is_no_failure() -> None:
    command = [sys.executable, "-m", "flexq_ft.orchestrate", "run", "--help"]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, b"") and b'{"id": ?' in done.stdout


def test_json_has_a_character_that_the_terminal_does_not_have() -> None:
    command = [
        sys.executable,
        "-m",
        "flexq_ft.orchestrate",
        "run",
        "/no/model/é\u4e2d",
        "q",
        "--json",
    ]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert "/no/model/é\u4e2d does not exist" in json.loads(done.stdout)["error"]["message"]


def test_an_error_of_the_system_names_the_file(fail_with: Fail, capsys: Capture) -> None:
    fail_with(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a/file"))
    assert run_cli(["run", "m", "q"]) == 1
    assert capsys.readouterr().err.startswith("error: a/file: Permission denied\n")
