"""A sweep over a generated model, through conversion, engine and report."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flexq_ft.converter import ConvertOptions, convert
from flexq_ft.converter.options import CalibrationOptions
from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.eval.perplexity import protocol_text
from flexq_ft.orchestrate.sweep.store import RowStore
from tests.converter.conftest import folder_bytes
from tests.orchestrate.schemas import validate

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
WINDOW = 48


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tools.checkpoints import make_checkpoint

    folder = tmp_path_factory.mktemp("model") / "hf"
    return make_checkpoint(folder, hidden=192, heads=6, kv_heads=3, inter=320, positions=128)


@pytest.fixture(scope="module")
def swept(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "text.txt").write_bytes(
        (ROOT / "configs" / "texts" / "river-lock.txt").read_bytes()[:1500]
    )
    sweep = {
        "schema": "flexq-ft/sweep/1",
        "model": str(model),
        "matrix": {
            "scheme": ["fp32", "w8a16", "w8a8", "w6a8"],
            "dtype": "fp32",
            "batch": [1, 3],
            "prompt_tokens": 17,
            "output_tokens": 5,
        },
        "exclude": [{"scheme": ["w8a16", "w8a8"], "batch": 3}],
        "include": [{"scheme": "fp32", "prompt_tokens": 200}],
        "repeat": {"min": 2},
        "quality": {
            "ppl": {"text": "text.txt", "protocol": "paper", "window": WINDOW},
            "agreement_with": "fp32",
        },
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    out = ["--out", str(folder / "out"), "--cache-dir", str(folder / "cache")]
    return folder, run_cli(["sweep", str(folder / "sweep.yaml"), *out])


@pytest.fixture(scope="module")
def rows(swept: tuple[Path, int]) -> list[dict[str, Any]]:
    return RowStore(swept[0] / "out").load()


def test_every_case_is_a_row_and_the_impossible_one_failed(
    swept: tuple[Path, int], rows: list[dict[str, Any]]
) -> None:
    assert [row["error"] and row["error"]["kind"] for row in rows] == [None] * 6 + ["ConfigError"]
    assert swept[1] == 1
    for row in rows:
        validate(row, "sweep.json", "#/$defs/row")


def test_perplexity_is_that_of_hugging_face(model: Path, rows: list[dict[str, Any]]) -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    data = (ROOT / "configs" / "texts" / "river-lock.txt").read_bytes()[:1500]
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = torch.tensor(tokenizer.encode(protocol_text(data, protocol="paper")).ids)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    losses = []
    with torch.no_grad():
        for start in range(0, len(ids) - WINDOW + 1, WINDOW):
            window = ids[start : start + WINDOW][None]
            losses.append(reference(window, labels=window).loss.item())
    ppl = rows[0]["quality"]["ppl"]
    assert rows[0]["config"]["scheme"] == "fp32"
    assert ppl["windows"] == len(losses)
    assert ppl["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-3)


def test_quality_is_worse_where_fewer_bits_are(rows: list[dict[str, Any]]) -> None:
    agreement = {row["config"]["scheme"]: row["quality"]["agreement"]["top1"] for row in rows[:6]}
    assert agreement["fp32"] == 1.0
    assert 0.5 < agreement["w6ax"] < 1.0
    assert agreement["w6ax"] <= agreement["w8a16"]


def test_losses_stand_beside_speed_in_the_report_and_the_csv(
    swept: tuple[Path, int], rows: list[dict[str, Any]]
) -> None:
    base = rows[0]["quality"]["ppl"]["window_losses"]
    lines = (swept[0] / "out" / "report.md").read_text(encoding="utf-8").splitlines()
    titles = next(line for line in lines if line.startswith("| # |"))
    assert "| perplexity | lost | agreement |" in titles
    lost = [cell.strip() for cell in titles.split("|")].index("lost")
    with (swept[0] / "out" / "report.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    for number, row in enumerate(rows[:6], start=1):
        ours = row["quality"]["ppl"]["window_losses"]
        ratio = math.exp(sum(a - b for a, b in zip(ours, base, strict=True)) / len(base))
        cells = next(line for line in lines if line.startswith(f"| {number} |")).split("|")
        assert cells[lost].strip().startswith(f"{100 * (ratio - 1):+.2f} %")
        assert float(table[number - 1]["perplexity_ratio"]) == pytest.approx(ratio)


def test_sizes_on_disk_are_ordered(rows: list[dict[str, Any]]) -> None:
    size = {row["config"]["scheme"]: row["metrics"]["weights_bytes"] for row in rows[:6]}
    assert size["w6ax"] < size["w8a8"] == size["w8a16"] < size["fp32"]


def test_command_of_a_row_repeats_its_quality(
    swept: tuple[Path, int], rows: list[dict[str, Any]]
) -> None:
    row = rows[-2]
    command = shlex.split(row["command"])
    cache = ["--cache-dir", str(swept[0] / "cache")]
    done = subprocess.run(
        [sys.executable, *command[1:], *cache], check=True, capture_output=True, text=True
    )
    again = json.loads(done.stdout)
    assert again["case_id"] == row["case_id"]
    assert again["config"] == row["config"]
    assert again["quality"] == row["quality"]


@pytest.fixture(scope="module")
def prepared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep of a checkpoint in three ways, and of a folder that is converted already."""
    folder = tmp_path_factory.mktemp("prepared")
    text = (ROOT / "configs" / "texts" / "river-lock.txt").read_bytes()
    (folder / "text.txt").write_bytes(text[:1500])
    (folder / "calib.txt").write_bytes(text[1500:])
    convert(model, folder / "converted", ConvertOptions())
    sweep = {
        "schema": "flexq-ft/sweep/1",
        "model": str(model),
        "matrix": {
            "scheme": "w6a8",
            "rotate": [False, True],
            "rounding": ["nearest", "gptq"],
            "prompt_tokens": 5,
            "output_tokens": 3,
        },
        "exclude": [{"rotate": True, "rounding": "nearest"}],
        "include": [{"model": "converted", "rotate": True, "output_tokens": 3}],
        "calibration": {"text": "calib.txt", "sequences": 4, "length": 32},
        "repeat": {"min": 1},
        "quality": {"ppl": {"text": "text.txt", "window": WINDOW}, "agreement_with": "fp16"},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    out = ["--out", str(folder / "out"), "--cache-dir", str(folder / "cache")]
    assert run_cli(["sweep", str(folder / "sweep.yaml"), *out]) == 1
    return folder


def test_a_checkpoint_is_prepared_as_by_convert(prepared: Path, model: Path) -> None:
    calibration = CalibrationOptions(text=prepared / "calib.txt", sequences=4, length=32)
    options = ConvertOptions(scheme="w6ax", rotate=True, rounding="gptq", calibration=calibration)
    convert(model, prepared / "own", options)
    expected = folder_bytes(prepared / "own" / "1-gpu")
    made = [folder_bytes(folder) for folder in (prepared / "cache").glob("*/1-gpu")]
    assert len(made) == 4 and expected in made  # and the baseline's


def test_a_conversion_is_no_part_of_its_case_s_memory(prepared: Path) -> None:
    rows = RowStore(prepared / "out").load()[:3]
    nearest, *by_torch = (row["metrics"]["peak_memory_bytes"] for row in rows)
    assert max(by_torch) < 1.2 * nearest


def test_a_case_s_memory_is_watched_from_behind_its_conversion_on(
    model: Path, tmp_path: Path
) -> None:
    module = "flexq_ft.orchestrate.sweep.case"
    options = ["--scheme", "w8a16", "--prompt-tokens", "4", "--output-tokens", "2"]
    options += ["--cache-dir", str(tmp_path), "--parent", str(os.getpid())]
    done = subprocess.run(
        [sys.executable, "-m", module, str(model), *options], start_new_session=True,
        check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    first, second = (line.split()[0] for line in done.stdout.splitlines()[:2])
    assert (first, second) == ("converting", "loading")


@pytest.fixture
def converting(model: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A case, and its process that converts, which waits for the folder's lock."""
    command = [sys.executable, "-m", "flexq_ft.orchestrate.sweep.case", str(model)]
    command += ["--prompt-tokens", "4", "--output-tokens", "2", "--cache-dir", str(tmp_path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (lock,) = tmp_path.glob("*.lock")
    shutil.rmtree(lock.with_suffix(""))
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        case = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (waiting := [pid for pid in users_of(lock) if pid != os.getpid()]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield case, waiting[0]
    with contextlib.suppress(ProcessLookupError):
        os.kill(waiting[0], signal.SIGKILL)
    case.communicate()


def users_of(file: Path) -> Iterator[int]:
    """The processes that have it open."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if descriptor.readlink() == file:
                yield int(descriptor.parts[2])


def test_a_conversion_ends_with_its_case(converting: tuple[subprocess.Popen[str], int]) -> None:
    case, _ = converting
    case.kill()
    assert case.communicate(timeout=30)[0] == ""  # a sweep reads so far


def test_a_conversion_that_was_killed_is_said(
    converting: tuple[subprocess.Popen[str], int], model: Path
) -> None:
    case, process = converting
    os.kill(process, signal.SIGKILL)
    row = json.loads(case.communicate(timeout=30)[0])
    assert case.returncode == 4 and row["error"]["kind"] == "LaunchError"
    assert f"that converts {model} was killed" in row["error"]["message"]


def test_every_preparation_has_its_name_and_its_loss(prepared: Path) -> None:
    rows = RowStore(prepared / "out").load()
    for row in rows:
        validate(row, "sweep.json", "#/$defs/row")
    losses = {row["quality"]["ppl"]["loss"] for row in rows[:3]}
    assert len(losses) == 3
    report = (prepared / "out" / "report.md").read_text(encoding="utf-8")
    for name in ("w6ax (w6a8)", "w6ax (w6a8), gptq", "w6ax (w6a8), rotated, gptq"):
        assert f"| {name} |" in report
    with (prepared / "out" / "report.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [(line["rotate"], line["rounding"]) for line in table[:3]] == [
        ("False", "nearest"),
        ("False", "gptq"),
        ("True", "gptq"),
    ]


def test_what_is_converted_already_is_refused(prepared: Path) -> None:
    row = RowStore(prepared / "out").load()[-1]
    assert row["error"]["kind"] == "ConfigError"
    assert "converted already, and cannot become rotated" in row["error"]["message"]
