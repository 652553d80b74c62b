"""Two ranks on two GPUs, as a user starts them: the command line, and mpirun llama_example."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import LLM, _native
from flexq_ft.converter import ConvertOptions, convert
from flexq_ft.orchestrate.cli.main import run_cli
from tests.reference.divergence import GREEDY_COMPARABLE, assert_greedy_equal_or_tied
from tests.tools.checkpoints import make_checkpoint
from tests.tools.gpus import needs_gpus
from tests.tools.mpi import needs_mpi, run_ranks
from tests.tools.programs import program

pytestmark = [needs_mpi, needs_gpus(2)]

PROMPT = [1, 30, 45, 27, 65, 12, 7]
NEW = 32
SCHEMES = ["fp16", "w8a16", "w8a8", "w6ax"]
INT8_MODE = {"fp16": 0, "w8a16": 1, "w8a8": 2, "w6ax": 5}
PROGRAMS = {"llama": "llama_example", "opt": "multi_gpu_gpt_example"}


@pytest.fixture(scope="module", params=list(PROGRAMS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def models(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each scheme, each with 1-gpu and 2-gpu."""
    out = tmp_path_factory.mktemp(family)
    sizes: dict[str, Any] = {"hidden": 256, "heads": 4, "inter": 512, "vocab": 320}
    if family == "llama":
        sizes["kv_heads"] = 2
    source = make_checkpoint(out / "hf", family=family, **sizes)
    for scheme in SCHEMES:
        convert(source, out / scheme, ConvertOptions(scheme=scheme, tp=(1, 2)))
    return out


def by_command(model: Path, tp: int, capsys: pytest.CaptureFixture[str]) -> list[int]:
    ids = ",".join(map(str, PROMPT))
    flags = ["--tp", str(tp), "--device", "cuda", "--max-tokens", str(NEW), "--ignore-eos"]
    assert run_cli(["run", str(model), "--ids", ids, *flags, "--json"]) == 0
    return list(json.loads(capsys.readouterr().out)["results"][0]["token_ids"])


def by_program(
    family: str, model: Path, scheme: str, tp: int, cwd: Path, device: str = "cuda"
) -> tuple[list[int], subprocess.CompletedProcess[str]]:
    """The new ids in the file `out`; never an end, so that lengths are equal."""
    sampling = "beam_width = 1\ntop_k = 1\ntop_p = 0.0\n"
    opt = family == "opt"
    cwd.mkdir()
    (cwd / "x.ini").write_text(
        f"[ft_instance_hyperparameter]\nmodel_dir = {model / f'{tp}-gpu'}\nmodel_name = m\n"
        f"tensor_para_size = {tp}\nint8_mode = {INT8_MODE[scheme]}\ndata_type = fp16\n"
        f"device = {device}\n{sampling if opt else ''}"
        f"[request]\nrequest_output_len = {NEW}\n{'' if opt else sampling}[m]\nend_id = 319\n"
    )
    (cwd / "start_ids.csv").write_text(", ".join(map(str, PROMPT)) + "\n")
    command = [program(PROGRAMS[family]), "x.ini"]
    if tp > 1:
        done = run_ranks(tp, command, cwd=cwd)
    else:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=False, timeout=180
        )
    assert done.returncode == 0, done.stderr
    row = (cwd / "out").read_text().replace(",", " ").split()
    return [int(word) for word in row][len(PROMPT) :], done


def assert_same(model: Path, one: list[int], two: list[int]) -> None:
    """The margin rule, with the logits of both sizes at the prefix that they have in common."""
    if one == two:
        return
    logits = []
    for tp, tokens in ((1, one), (2, two)):
        with LLM(model, tensor_parallel_size=tp, device="cuda") as llm:
            every = llm.forward_logits([PROMPT + tokens])[0]
            logits.append(np.asarray(every)[len(PROMPT) - 1 : -1])
    assert_greedy_equal_or_tied(two, one, logits[1], logits[0])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_command_gives_what_one_gpu_gives(
    models: Path, scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens of quantised activations may part ways across sizes (tests/e2e replays), never across
    runs."""
    two = by_command(models / scheme, 2, capsys)
    assert len(two) == NEW and by_command(models / scheme, 2, capsys) == two
    if scheme in GREEDY_COMPARABLE:
        assert_same(models / scheme, by_command(models / scheme, 1, capsys), two)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_program_gives_what_one_gpu_gives(
    family: str, models: Path, scheme: str, tmp_path: Path
) -> None:
    two, done = by_program(family, models / scheme, scheme, 2, tmp_path / "2")
    gpus = _native.gpus()
    for rank in range(2):
        assert f"P{rank} is running with GPU #{rank}." in done.stdout
        assert f"Device {gpus[rank]['name']}\n" in done.stdout
    again, _ = by_program(family, models / scheme, scheme, 2, tmp_path / "again")
    assert again == two
    if scheme in GREEDY_COMPARABLE:
        one, _ = by_program(family, models / scheme, scheme, 1, tmp_path / "1")
        assert_same(models / scheme, one, two)


def test_auto_is_a_gpu_for_every_rank(family: str, models: Path, tmp_path: Path) -> None:
    _, done = by_program(family, models / "fp16", "fp16", 2, tmp_path / "auto", device="auto")
    assert "P1 is running with GPU #1." in done.stdout


def test_a_rank_without_a_gpu_is_named(family: str, models: Path, tmp_path: Path) -> None:
    by_program(family, models / "fp16", "fp16", 2, tmp_path / "run", device="cuda")
    done = run_ranks(
        2,
        [program(PROGRAMS[family]), "x.ini"],
        cwd=tmp_path / "run",
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "0"},
    )
    assert done.returncode == 4
    assert "device is cuda, but rank 1 has no GPU" in done.stderr


def test_shares_of_weights_are_halves_but_for_what_is_replicated(models: Path) -> None:
    """Embedding and norms are whole on every rank; the linears and the head are cut."""
    memory = {}
    for tp in (1, 2):
        with LLM(models / "fp16", tensor_parallel_size=tp, device="cuda") as llm:
            memory[tp] = llm.info.memory_bytes
            note = llm.info.step_note
    assert note == "decode steps run op by op: 2 ranks share the model"
    assert memory[2]["weights"] < 0.75 * memory[1]["weights"]
