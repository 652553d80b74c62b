"""`flexq-ft bench latency` on a generated model: the command line, its files, its streams."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from flexq_ft import _native
from flexq_ft.errors import DeviceError
from flexq_ft.orchestrate import devices, shapes
from flexq_ft.orchestrate.cli.main import run_cli
from tests.orchestrate.schemas import validate
from tests.tools.mpi import needs_mpi

pytest.importorskip("torch")
pytest.importorskip("transformers")

Capture = pytest.CaptureFixture[str]
QUICK = ("--repeat", "2", "--warm-up", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flexq_ft.converter import ConvertOptions, convert
    from tests.tools.checkpoints import make_checkpoint

    folder = tmp_path_factory.mktemp("bench")
    source = make_checkpoint(
        folder / "hf", hidden=128, heads=4, kv_heads=2, inter=256, positions=128
    )
    convert(source, folder / "out", ConvertOptions(scheme="fp16"))
    return folder / "out"


@pytest.fixture(autouse=True)
def small_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte need not be read for every test."""
    measure = _native.measure_read_bandwidth
    monkeypatch.setattr(
        _native, "measure_read_bandwidth", lambda **options: measure(**options, bytes=1 << 24)
    )


def test_schemes_batches_and_files(model: Path, tmp_path: Path, capsys: Capture) -> None:
    saves = [tmp_path / f"out.{suffix}" for suffix in ("json", "md", "csv")]
    arguments = ["--scheme", "fp16,w8a16,w8a8", "--batch", "1-2*2", "--prompt-tokens", "5"]
    arguments += ["--output-tokens", "4", *QUICK]
    arguments += [part for save in saves for part in ("--save", str(save))]
    assert run_cli(["bench", "latency", str(model), *arguments]) == 0
    captured = capsys.readouterr()
    assert "decode" in captured.out and "w8a16" in captured.out
    assert captured.err.count("reproduce: flexq-ft bench latency ") == 6
    document = json.loads(saves[0].read_text())
    validate(document, "bench-latency.json")
    assert document["environment"]["gpus"] == [gpu["name"] for gpu in _native.gpus()]
    rows = document["results"]
    assert [(r["config"]["batch"], r["model"]["scheme"]) for r in rows] == [
        (batch, scheme) for batch in (1, 2) for scheme in ("fp16", "w8a16", "w8a8")
    ]
    assert rows[0]["model"]["digest"] == rows[5]["model"]["digest"]
    for row in rows:
        assert row["interleaved"] and row["rounds"] == 2 and row["machine"]["device"] == "cpu"
        assert len(row["samples"]["ttft_ms"]) == len(row["samples"]["tpot_ms"]) == 2
        decode = row["decode"]
        assert decode["tok_s"] > 0 and decode["share_of_bandwidth"] > 0
        assert decode["device_step_ms"]["n"] == 2 * 3
        assert decode["device_tok_s"] > decode["tok_s"]  # a step is a part of what the clock sees
    assert rows[0]["memory_bytes"]["weights"] > rows[2]["memory_bytes"]["weights"]
    assert saves[1].read_text().startswith("# Latency of ")
    assert run_cli(["bench", "latency", str(model), *arguments[4:8], *QUICK]) == 0
    out = capsys.readouterr().out
    assert "fp16" in out and "as converted" not in out
    lines = list(csv.DictReader(saves[2].read_text().splitlines()))
    assert len(lines) == 12 and {line["phase"] for line in lines} == {"prefill", "decode"}
    assert float(lines[1]["p50_ms"]) == rows[0]["decode"]["tpot_ms"]["p50"]
    assert all(line["total_bytes"] and line["error"] == "" for line in lines)


def test_the_csv_tells_policies_apart(tmp_path: Path) -> None:
    arguments = ["bench", "latency", "--shape", "smollm2-135m", "--synthetic-weights", *QUICK]
    arguments += ["--prompt-tokens", "3", "--output-tokens", "1", "--scheme", "flexq,w6a6"]
    saved = tmp_path / "out.csv"
    assert run_cli([*arguments, "--device", "cpu", "--save", str(saved)]) == 0
    lines = list(csv.DictReader(saved.read_text().splitlines()))
    assert [(line["scheme"], line["policy"]) for line in lines] == [
        ("w6ax", "flexq"),
        ("w6ax", "w6a6"),
    ]


def test_a_quantised_head_of_a_shape(capsys: Capture) -> None:
    arguments = ["bench", "latency", "--shape", "smollm2-135m", "--synthetic-weights", *QUICK]
    arguments += ["--prompt-tokens", "3", "--output-tokens", "3", "--scheme", "w6ax"]
    arguments += ["--device", "cpu", "--json", "-q"]
    rows = []
    for head in ("fp16", "w8"):
        assert run_cli([*arguments, "--lm-head", head]) == 0
        document = json.loads(capsys.readouterr().out)
        validate(document, "bench-latency.json")
        rows += document["results"]
    floats, int8 = rows
    assert (floats["model"]["lm_head"], int8["model"]["lm_head"]) == ("fp16", "w8")
    saved = 49152 * 576 - 4 * 49152
    read = [row["decode"]["bytes_per_rank"]["lm_head"] for row in rows]
    assert read[0] - read[1] == saved
    assert floats["memory_bytes"]["weights"] - int8["memory_bytes"]["weights"] == saved
    assert "--lm-head w8" in int8["reproduce"]


@needs_mpi
def test_ranks_of_a_tensor_parallel_run_give_their_step_times(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    source = str(model.parent / "hf")
    arguments = ["--scheme", "fp16,w8a8", "--tp", "2", "--threads", "1", "--prompt-tokens", "3"]
    arguments += ["--output-tokens", "3", "--cache-dir", str(tmp_path), "--json", "-q", *QUICK]
    assert run_cli(["bench", "latency", source, *arguments]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    for row in rows:
        assert row["error"] is None and row["interleaved"]
        assert row["machine"]["ranks"] == 2 and row["config"]["device"] == "cpu"
        assert row["decode"]["device_step_ms"]["n"] == 2 * 2


def test_the_reproduce_line_runs(model: Path, capsys: Capture) -> None:
    arguments = ["--prompt-tokens", "3", "--output-tokens", "2", *QUICK, "--json", "-q"]
    assert run_cli(["bench", "latency", str(model), *arguments]) == 0
    row = json.loads(capsys.readouterr().out)["results"][0]
    assert run_cli([*shlex.split(row["reproduce"])[1:], "--warm-up", "1", "--json", "-q"]) == 0
    again = json.loads(capsys.readouterr().out)["results"][0]
    assert again["config"] == row["config"] and again["reproduce"] == row["reproduce"]


def test_the_only_case_s_error_is_the_command_s(model: Path, capsys: Capture) -> None:
    long = ["--prompt-tokens", "120", "--output-tokens", "9", *QUICK]
    assert run_cli(["bench", "latency", str(model), *long, "--json"]) == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    validate(document, "bench-latency.json")
    assert document["error"]["kind"] == "ConfigError" and document["results"] is None
    assert "do not fit the model's 128 positions" in captured.err


def test_one_failed_case_of_several_is_a_row_and_the_exit_code(
    model: Path, capsys: Capture
) -> None:
    some = ["--scheme", "fp16,w6a8", "--prompt-tokens", "3", "--output-tokens", "2", *QUICK]
    assert run_cli(["bench", "latency", str(model), *some, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    validate(document, "bench-latency.json")
    assert [row["error"] is None for row in document["results"]] == [True, False]
    assert document["error"] is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["m", "--shape", "llama-7b"], "both were given"),
        ([], "neither was given"),
        (["--shape", "llama-7b"], "has no weights"),
        (["--shape", "lama-7b"], "Did you mean 'llama-7b'?"),
        (["--shape", "lama-7b", "--synthetic-weights"], "Did you mean 'llama-7b'"),
        (["m", "--scheme", "fp16,w5"], "'w5' is not one of"),
        (["m", "--batch", "8-1"], "never reaches its end"),
        (["m", "--batch", "0"], "0 is not a number above 0"),
        (["m", "--batch", "x"], "'x' is not a number above 0"),
        (["m", "--device", "tpu"], "device 'tpu' is not known"),
        (["m", "--save", "x.txt"], "known: .json, .md, .csv"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    arguments: list[str], text: str, capsys: Capture
) -> None:
    assert run_cli(["bench", "latency", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_other_verbs_save_no_csv(capsys: Capture) -> None:
    assert run_cli(["doctor", "--save", "x.csv"]) == 2
    assert "known: .json, .md." in capsys.readouterr().err


def test_a_device_that_is_not_there_is_exit_4(
    model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpus", list)
    arguments = ["--output-tokens", "2", "--prompt-tokens", "2", "--device", "cuda"]
    assert run_cli(["bench", "latency", str(model), *arguments]) == DeviceError.exit_code
    assert "there is no GPU that this build can use" in capsys.readouterr().err


def test_lengths_come_from_the_environment_too(
    model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEXQ_FT_BENCH_LATENCY_PROMPT_TOKENS", "6")
    monkeypatch.setenv("FLEXQ_FT_BENCH_LATENCY_OUTPUT_TOKENS", "1")
    assert run_cli(["bench", "latency", str(model), *QUICK, "--json", "-q"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert row["config"]["prompt_tokens"] == 6 and row["decode"] is None


def test_measurements_are_listed(capsys: Capture) -> None:
    assert run_cli(["bench", "--help"]) == 0
    assert "latency" in capsys.readouterr().out
    assert run_cli(["bench", "latencies"]) == 2


@pytest.fixture
def tiny_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A shape of its own folder, small enough for a CPU."""
    text = shapes.find_shape("llama-3-8b").read_text()
    sizes = {
        "head_num": 4, "size_per_head": 32, "kv_head_num": 2, "inter_size": 256, "num_layer": 2,
        "vocab_size": 320, "start_id": 1, "end_id": 2, "end_ids": 2, "rotary_embedding": 32,
    }  # fmt: skip
    for key, value in sizes.items():
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    (tmp_path / "tiny.ini").write_text(text)
    monkeypatch.setattr(shapes, "shapes_folder", lambda: tmp_path)
    return "tiny"


def test_a_folder_can_be_filled_with_synthetic_weights(model: Path, capsys: Capture) -> None:
    arguments = ["--synthetic-weights", "--scheme", "fp16,w8a8", "--prompt-tokens", "3"]
    arguments += ["--output-tokens", "2", *QUICK, "--save", str(model.parent / "synthetic.md")]
    assert run_cli(["bench", "latency", str(model), *arguments]) == 0
    assert "synthetic weights" in (model.parent / "synthetic.md").read_text()
    assert "--synthetic-weights" in capsys.readouterr().err


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=needs_mpi)])
def test_a_shape_runs_on_synthetic_weights(tiny_shape: str, ranks: int, capsys: Capture) -> None:
    arguments = ["--shape", tiny_shape, "--synthetic-weights", "--scheme", "fp16,w8a16,w8a8"]
    arguments += ["--prompt-tokens", "3", "--output-tokens", "3", "--tp", str(ranks)]
    assert run_cli(["bench", "latency", *arguments, *QUICK, "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    validate(document, "bench-latency.json")
    for row in document["results"]:
        assert row["config"]["synthetic_weights"] and row["error"] is None
        assert row["model"]["name"] == "llama-3-8b" and row["machine"]["ranks"] == ranks
        counted = row["decode"]["bytes_per_rank"]
        assert row["memory_bytes"]["weights"] >= counted["weights"] + counted["scales"]
