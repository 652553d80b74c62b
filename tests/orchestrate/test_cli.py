"""The command line: streams, the JSON envelope, prompts, environment, help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flexq_ft.orchestrate.cli.console import console
from flexq_ft.orchestrate.cli.main import VERBS, run_cli
from tests.orchestrate import fakes
from tests.orchestrate.fakes import EOS, FakeNative, says
from tests.orchestrate.schemas import SCHEMAS, validate

Use = Callable[..., list[dict[str, Any]]]
Capture = pytest.CaptureFixture[str]


def shell(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flexq_ft.orchestrate", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_stdout_holds_the_answer_and_nothing_else(use_model: Use, capsys: Capture) -> None:
    use_model(says("an answer"))
    assert run_cli(["run", "m", "question", "-v"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "an answer\n"
    assert "tok/s" in captured.err and "fake" in captured.err


def test_the_kernels_of_products_and_steps_are_detail(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = "qkv [96, 64], 1 token of 6 bits: stream kernel=direct (table)"
    step = "decode steps run op by op: heads of 96 columns, neither 64 nor 128"
    info = replace(fakes.fake_info(), gemm_note="a table", gemm_choices=[choice], step_note=step)
    monkeypatch.setattr(fakes, "fake_info", lambda **_: info)
    use_model(says("an answer"))
    assert run_cli(["run", "m", "question", "-v"]) == 0
    assert f"a table\n{choice}\n{step}\n" in capsys.readouterr().err
    assert run_cli(["run", "m", "question"]) == 0
    err = capsys.readouterr().err
    assert choice not in err and step not in err


def test_quiet_leaves_stderr_empty(use_model: Use, capsys: Capture) -> None:
    use_model(says("an answer"))
    assert run_cli(["run", "m", "question", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_stdin_is_the_prompt_for_a_dash(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_model(lambda ids: [*ids, *[EOS] * 9])
    (tmp_path / "in").write_text("from stdin\n")
    with (tmp_path / "in").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run_cli(["run", "m", "-", "-q"]) == 0
    assert capsys.readouterr().out == "from stdin\n"


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        ("é\nfile", "é\nfile"),
        ("file\n", "file"),
        ("file\r\n", "file"),
        ("file\n\n", "file\n"),
        ("\ufefffile", "file"),
    ],
)
def test_neither_the_last_line_end_nor_a_byte_order_mark_is_a_prompt_files(
    use_model: Use, capsys: Capture, tmp_path: Path, content: str, prompt: str
) -> None:
    use_model(lambda ids: [*ids, *[EOS] * 9])
    (tmp_path / "p.txt").write_bytes(content.encode())
    assert run_cli(["run", "m", "--prompt-file", str(tmp_path / "p.txt"), "-q"]) == 0
    assert capsys.readouterr().out == prompt + "\n"


@pytest.mark.parametrize(
    "arguments", [["m", "caf\udce9"], ["caf\udce9", "q"], ["m", "q", "--save", "caf\udce9/o.json"]]
)
def test_arguments_of_other_bytes_than_utf8_are_refused(
    use_model: Use, capsys: Capture, arguments: list[str]
) -> None:
    use_model(says("hi"))
    assert run_cli(["run", *arguments]) == 2
    assert "is not UTF-8 text.\n  cause: 'utf-8' codec can't decode byte 0xe9" in (
        capsys.readouterr().err
    )


def test_ctrl_c_while_a_native_module_is_imported_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr("flexq_ft.orchestrate.cli.load.LLM", interrupted)
    assert run_cli(["run", "m", "q"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ids_in_and_out(use_model: Use, capsys: Capture) -> None:
    use_model(lambda ids: [*ids, EOS], tokenizer=False)
    assert run_cli(["run", "m", "5,6,7", "--ids", "-q"]) == 0
    assert capsys.readouterr().out == f"5,6,7,{EOS}\n"


def test_chat_template_wraps_the_prompt(use_model: Use, capsys: Capture) -> None:
    use_model(lambda ids: [*ids, EOS])
    assert run_cli(["run", "m", "hello", "--chat-template", "-q"]) == 0
    assert capsys.readouterr().out == "<user>hello<assistant>\n"


def test_json_is_one_document_that_its_schema_accepts(use_model: Use, capsys: Capture) -> None:
    use_model(says("hi"))
    assert run_cli(["run", "m", "q", "--json", "--seed", "7", "--logprobs"]) == 0
    document = json.loads(capsys.readouterr().out)
    validate(document, "run.json")
    assert document["error"] is None
    assert document["command"] == "flexq-ft run m q --json --seed 7 --logprobs"
    (result,) = document["results"]
    assert result["token_ids"] == [*b"hi", EOS] and result["text"] == "hi"
    assert result["seed"] == 7 and len(result["logprobs"]) == 3


def test_an_error_is_in_the_document_too(use_model: Use, capsys: Capture) -> None:
    use_model(says("hi"))
    assert run_cli(["run", "m", "", "--json"]) == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    validate(document, "run.json")
    assert document["error"]["kind"] == "ConfigError" and document["error"]["exit_code"] == 2
    assert captured.err.startswith("error: the prompt is empty.")


def test_usage_errors_are_in_the_document_too(capsys: Capture) -> None:
    assert run_cli(["run", "m", "q", "--json", "--no-such-flag"]) == 2
    validate(json.loads(capsys.readouterr().out), "envelope.json")


@pytest.mark.parametrize(
    "verb", [*VERBS, "bench latency", "bench gemm", "eval ppl", "eval kl", "cache rm"]
)
def test_an_error_is_in_the_verb_s_own_document(verb: str, capsys: Capture) -> None:
    assert run_cli([*verb.split(), "--no-such-flag", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    schema = document["schema"].split("/")[1]
    assert schema == {"sweep": "sweep-result"}.get(verb, verb.replace(" ", "-"))
    validate(
        document, f"{schema}.json" if (SCHEMAS / f"{schema}.json").exists() else "envelope.json"
    )


def test_save_writes_json_and_markdown(use_model: Use, capsys: Capture, tmp_path: Path) -> None:
    use_model(says("hi"))
    files = [tmp_path / "a.json", tmp_path / "b.md"]
    assert run_cli(["run", "m", "q", "--save", str(files[0]), "--save", str(files[1])]) == 0
    assert capsys.readouterr().out == "hi\n"
    validate(json.loads(files[0].read_text()), "run.json")
    assert files[1].read_text().startswith("hi\n") and "| ttft_ms |" in files[1].read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.md"]


def test_save_of_an_unknown_suffix_is_refused_before_the_run(
    use_model: Use, capsys: Capture
) -> None:
    calls = use_model(says("hi"))
    assert run_cli(["run", "m", "q", "--save", "x.xlsx"]) == 2
    assert ".xlsx" in capsys.readouterr().err and not calls


def test_save_into_an_absent_folder_is_refused_before_the_run(
    use_model: Use, capsys: Capture, tmp_path: Path
) -> None:
    calls = use_model(says("hi"))
    path = tmp_path / "absent" / "x.json"
    assert run_cli(["run", "m", "q", "--save", str(path)]) == 2
    err = capsys.readouterr().err
    assert f"{path} cannot be written" in err and f"no folder {path.parent}" in err and not calls


def test_the_folder_of_save_is_that_of_rank_0(
    use_model: Use, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = use_model(says("hi"))
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setattr("flexq_ft.orchestrate.world.join", lambda size: None)
    monkeypatch.setattr("flexq_ft.orchestrate.cli.main.time.sleep", lambda seconds: None)
    assert run_cli(["run", "m", "q", "--tp", "2", "--save", str(tmp_path / "absent" / "x.md")]) == 2
    assert len(calls) == 1  # as far as that the option was taken


def test_sampling_flags_arrive(use_model: Use) -> None:
    native = FakeNative(says("hi"))
    use_model(native)
    flags = "--temperature 0.5 --top-k 9 --top-p 0.8 --min-p 0.1 --max-tokens 1k --seed 3"
    assert run_cli(["run", "m", "q", *flags.split(), "--ignore-eos", "--max-tokens", "4"]) == 0
    params = native.admitted[0][1]
    assert params["temperature"] == 0.5 and params["top_k"] == 9 and params["top_p"] == 0.8
    assert params["min_p"] == 0.1 and params["seed"] == 3 and params["ignore_eos"] is True
    assert params["max_tokens"] == 4


def test_model_flags_arrive(use_model: Use) -> None:
    calls = use_model(says("hi"))
    flags = "--scheme w6ax --policy w6a8 --dtype fp32 --tp 1 --threads 3 --max-len 2k"
    assert run_cli(["run", "m", "q", *flags.split()]) == 0
    expected = {"scheme": "w6ax", "policy": "w6a8", "dtype": "fp32", "threads": 3, "max_len": 2048}
    assert expected.items() <= calls[0].items() and calls[0]["device"] == "auto"
    assert run_cli(["run", "m", "q", "--step-kernel", "off"]) == 0
    assert run_cli(["run", "m", "q", "--step-kernel", "always"]) == 2
    assert [call["step_kernel"] for call in calls] == ["auto", "off"]


def test_the_device_arrives_and_is_checked_first(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = use_model(says("hi"))
    assert run_cli(["run", "m", "q", "--device", "cuda:1"]) == 0
    assert run_cli(["run", "m", "q", "--device", "gpu"]) == 2
    monkeypatch.setenv("FLEXQ_FT_RUN_DEVICE", "cpu")
    assert run_cli(["run", "m", "q", "--json"]) == 0
    assert [call["device"] for call in calls] == ["cuda:1", "cpu"]
    document = json.loads(capsys.readouterr().out.removeprefix("hi\n"))
    assert document["config"]["device"] == "cpu" and "gpus" in document["environment"]


def test_int8_mode_is_a_scheme(use_model: Use, capsys: Capture) -> None:
    calls = use_model(says("hi"))
    assert run_cli(["run", "m", "q", "--int8-mode", "5"]) == 0
    assert calls[0]["scheme"] == "w6ax"
    assert run_cli(["run", "m", "q", "--int8-mode", "5", "--scheme", "w6ax"]) == 2


def test_the_environment_sets_options_of_one_verb(
    use_model: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = FakeNative(says("a long answer"))
    use_model(native)
    monkeypatch.setenv("FLEXQ_FT_RUN_MAX_TOKENS", "2")
    assert run_cli(["run", "m", "q"]) == 0
    assert run_cli(["run", "m", "q", "--max-tokens", "3"]) == 0
    assert [params["max_tokens"] for _, params in native.admitted] == [2, 3]


def test_jsonl_keeps_order_and_carries_errors(
    use_model: Use, capsys: Capture, tmp_path: Path
) -> None:
    use_model(lambda ids: [*ids, *[EOS] * 99])
    rows = [
        '{"id": "a", "prompt": "first and longest"}',
        '{"id": 2, "prompt_token_ids": [120], "max_tokens": 1}',
        "not json",
        "",
        '{"id": "c", "prompt": "x", "temprature": 1}',
        '{"id": "d", "prompt": "x", "prompt_token_ids": [1]}',
        '{"id": "e", "prompt": "\\ud800"}',
        '{"id": "f", "prompt": "x", "top_p": 2}',
        "[" * 100_000,
        '{"id": "line\u2028end", "prompt": "x\u2028"}',
        '{"prompt": "last"}',
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\r\n".join(rows), newline="")
    assert run_cli(["run", "m", "--jsonl", str(path), "--max-tokens", "20"]) == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.split("\n")[:-1]]
    for line in lines:
        validate(line, "run.json", "#/$defs/row")
    assert [line.get("id") for line in lines] == [
        *["a", 2, None, "c", "d", "e", "f", None, "line\u2028end", None]
    ]
    assert ["error" in line for line in lines] == [False, False, *[True] * 6, False, False]
    assert lines[0]["text"] == "first and longest" and lines[-1]["text"] == "last"
    assert lines[1]["finish_reason"] == "length" and lines[1]["token_ids"] == [120]
    assert "rows.jsonl:3" in lines[2]["error"]["message"]
    assert "did you mean 'temperature'?" in lines[3]["error"]["message"]
    assert "6 of 10 rows failed" in captured.err


def test_jsonl_under_json_is_one_document(use_model: Use, capsys: Capture, tmp_path: Path) -> None:
    use_model(says("hi"))
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    markdown = tmp_path / "rows.md"
    assert run_cli(["run", "m", "--jsonl", str(path), "--json", "--save", str(markdown)]) == 0
    assert markdown.read_text().count('"hi"') == 2
    document = json.loads(capsys.readouterr().out)
    validate(document, "run.json")
    assert len(document["results"]) == 2


@pytest.mark.parametrize(
    "args",
    [
        ["run", "m"],
        ["run", "m", "q", "--prompt-file", __file__],
        ["run", "m", "q", "--jsonl", __file__],
        ["run", "m", "--jsonl", __file__, "--ids"],
        ["run", "m", "1,2", "--ids", "--chat-template"],
        ["run", "m", "q", "--logprobs"],
    ],
)
def test_prompts_and_flags_that_contradict_are_refused(args: list[str], capsys: Capture) -> None:
    assert run_cli(args) == 2
    assert "Try:   flexq-ft run --help" in capsys.readouterr().err


def test_help_names_groups_defaults_schemes_and_an_example(capsys: Capture) -> None:
    assert run_cli(["run", "--help"]) == 0
    text = capsys.readouterr().out
    for expected in ("Sampling", "Precision", "Parallel", "Output", "128", "6.125", "Example"):
        assert expected in text


@pytest.mark.parametrize("verb", ["run", "chat", "cache", "doctor"])
def test_a_verb_is_listed_and_has_help_of_its_own(verb: str, capsys: Capture) -> None:
    assert run_cli(["--help"]) == 0
    assert VERBS[verb].split()[0] in capsys.readouterr().out
    assert run_cli([verb, "--help"]) == 0
    assert f"flexq-ft {verb}" in capsys.readouterr().out


def test_version_names_commit_and_cuda(capsys: Capture) -> None:
    assert run_cli(["--version"]) == 0
    assert "commit" in (out := capsys.readouterr().out) and "CUDA: " in out


@pytest.mark.parametrize("module", ["flexq_ft", "flexq_ft.orchestrate"])
def test_python_runs_the_package(module: str, capsys: Capture) -> None:
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run_cli(["--version"]) == 0
    assert (done.returncode, done.stdout) == (0, capsys.readouterr().out)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from flexq_ft.orchestrate.cli.main import run_cli; run_cli(['--help']);"
        "heavy = {'numpy', 'tokenizers', 'jinja2', 'pydantic', 'flexq_ft._native'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_closed_stdout_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "flexq_ft.orchestrate", "--version"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_rows_stop_when_nobody_reads_them(
    use_model: Use, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = FakeNative(says("a long answer"))
    use_model(native)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "max_tokens": 1}\n' + '{"prompt": "b"}\n' * 5)

    def closed(*args: Any, **options: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored: the command replaces it
    monkeypatch.setattr(console, "out", closed)
    assert run_cli(["run", "m", "--jsonl", str(path)]) == 0
    assert native.released == [0, 1] and not native.running
    assert capsys.readouterr().err == ""


def test_a_load_shows_its_progress_once_it_takes_a_moment(capsys: Capture) -> None:
    from flexq_ft.orchestrate.cli.progress import LoadProgress

    with LoadProgress("loading") as quick:
        quick(500, 1000)
        quick(1000, 1000)
    assert capsys.readouterr().err == ""
    with LoadProgress("loading", patience_s=0.0) as slow:
        slow(500, 1000)
        slow(1000, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in lines] == ["loading: 50 %", "loading: 100 %"]


def test_the_rate_of_a_late_bar_is_that_of_all_its_work(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexq_ft.orchestrate.cli import progress

    clock = iter([0.0, 0.5, 2.0, 2.0, 4.0, 4.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    console.reset([])
    work = progress.ConversionProgress()
    work.start(task="calibrating", total_bytes=8_000_000, total_tensors=3)
    for size in (1_000_000, 3_000_000, 4_000_000):
        work.advance(tensor="x", source_bytes=size)
    work.finish()
    assert capsys.readouterr().err.splitlines() == [
        "calibrating: 50 % (4.0 MB of 8.0 MB, 2.0 MB/s, 2 s left)",
        "calibrating: 100 % (8.0 MB of 8.0 MB, 2.0 MB/s, 0 s left)",
    ]


def test_progress_without_a_terminal_is_plain_lines(capsys: Capture) -> None:
    from flexq_ft.orchestrate.cli.progress import progress

    console.reset([])
    with progress("writing", 1000, is_bytes=True) as bar:
        for _ in range(40):
            bar.advance(25)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 10 and lines[0].startswith("writing: 10 %") and captured.out == ""
    assert "\x1b" not in captured.err and "\r" not in captured.err


def test_no_color_is_honoured() -> None:
    done = shell("--help", env=os.environ | {"NO_COLOR": "1", "FORCE_COLOR": ""})
    assert done.returncode == 0 and "\x1b[3" not in done.stdout


def test_an_unknown_verb_names_the_nearest(capsys: Capture) -> None:
    assert run_cli(["runn"]) == 2
    assert "No such command 'runn'. Did you mean 'run'?" in capsys.readouterr().err
    assert run_cli(["quantize"]) == 2
    assert "There are convert, run, chat," in capsys.readouterr().err
    assert run_cli(["bench", "latancy"]) == 2
    assert "No such command 'latancy'. Did you mean 'latency'?" in capsys.readouterr().err
    assert run_cli(["eval", "mmlu"]) == 2
    assert "There are ppl, tasks, kl." in capsys.readouterr().err


def test_a_prompt_beyond_the_sliding_window_names_it(use_model: Use, capsys: Capture) -> None:
    use_model(says("x"), max_len=8, sliding_window=8)
    assert run_cli(["run", "m", "longer than eight"]) == 2
    assert "sliding_window of 8" in capsys.readouterr().err


def test_a_rank_that_may_not_speak_leaves_after_rank_0(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("flexq_ft.orchestrate.cli.main.time.sleep", waited.append)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    for rank, waits in (("0", 0), ("1", 1)):
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", rank)
        assert run_cli(["run", "m", "question", "--no-such-flag"]) == 2
        assert len(waited) == waits
    assert capsys.readouterr().err.count("No such option") == 1
