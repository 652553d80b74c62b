"""`flexq-ft eval kl`: the divergence against NumPy, two runs of a tiny model, what is refused."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import LLM, _native
from flexq_ft.converter import ConvertOptions, convert
from flexq_ft.errors import ConfigError, WeightError
from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.eval import logit_file
from flexq_ft.orchestrate.eval.divergence import Divergence
from flexq_ft.orchestrate.eval.logit_file import LogitFile
from flexq_ft.orchestrate.eval.perplexity import protocol_text
from tests.orchestrate.schemas import validate
from tests.reference.divergence import Divergence as Oracle
from tests.tools.mpi import needs_mpi

pytest.importorskip("transformers")

Capture = pytest.CaptureFixture[str]

WINDOW = 64
TEXT = Path(__file__).parents[2] / "configs" / "texts" / "river-lock.txt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tools.checkpoints import make_checkpoint

    folder = tmp_path_factory.mktemp("hf") / "tiny"
    # Two ranks cut it between groups of 128: the same integers as on one.
    return make_checkpoint(folder, hidden=256, heads=4, kv_heads=2, inter=256, positions=128)


@pytest.fixture(scope="module")
def folders(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("out")
    for scheme in ("fp16", "w6a6"):
        convert(checkpoint, out / scheme, ConvertOptions(scheme=scheme, tp=(1, 2)))
    return {path.name: path for path in out.iterdir()}


def arguments(model: Path, *more: str) -> list[str]:
    text = ["--text", str(TEXT), "--window", str(WINDOW), "--max-windows", "4"]
    return ["eval", "kl", str(model), *text, *more]


def evaluated(capsys: Capture, args: list[str]) -> dict[str, Any]:
    assert run_cli([*args, "--json", "-q"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    validate(document, "eval-kl.json")
    return document


def test_divergence_is_numpys() -> None:
    rng = np.random.default_rng(5)
    divergence, rows = Divergence(), []
    for _ in range(3):
        ids = rng.integers(0, 90, 150).tolist()
        reference = rng.normal(size=(150, 90)).astype(np.float32)
        logits = (reference + 0.3 * rng.normal(size=(150, 90))).astype(np.float32)
        divergence.add(ids, reference, logits)
        p, q = (np.exp(x[:-1].astype(float)) for x in (reference, logits))
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        at = np.arange(149), ids[1:]
        kl = (p * np.log(p / q)).sum(1)
        agree = reference[:-1].argmax(1) == logits[:-1].argmax(1)
        rows.append((kl, agree, -np.log(q[at]), -np.log(p[at])))
    kl, agree, loss, reference_loss = (np.stack(column) for column in zip(*rows, strict=True))
    result = divergence.to_json()
    assert result["kl"]["mean"] == pytest.approx(kl.mean())
    assert result["kl"]["p50"] == pytest.approx(np.median(kl))
    assert result["kl"]["p99"] == pytest.approx(np.quantile(kl, 0.99))
    assert result["kl"]["max"] == pytest.approx(kl.max())
    error = kl.mean(1).std(ddof=1) / math.sqrt(3)
    assert result["kl"]["standard_error"] == pytest.approx(error)
    low, high = result["kl"]["confidence95"]
    assert high - low == pytest.approx(2 * 4.30 * error, rel=1e-6)  # Student's t, 2 degrees
    assert result["top1_agreement"]["mean"] == pytest.approx(agree.mean())
    assert result["perplexity"] == pytest.approx(np.exp(loss.mean()))
    assert result["reference_perplexity"] == pytest.approx(np.exp(reference_loss.mean()))
    assert result["positions"] == 3 * 149 and result["window_kl"] == pytest.approx(kl.mean(1))


def test_a_model_does_not_diverge_from_itself() -> None:
    logits = np.random.default_rng(1).normal(size=(9, 7)).astype(np.float32)
    divergence = Divergence()
    divergence.add([*range(7), 0, 1], logits, logits + np.float32(2))  # a shift is nothing
    result = divergence.to_json()
    assert abs(result["kl"]["mean"]) < 1e-6 and result["top1_agreement"]["mean"] == 1.0
    assert result["kl"]["standard_error"] is None  # one window


@pytest.mark.parametrize("side", ["the reference", "the model"])
def test_logits_that_are_not_finite_are_an_error(side: str) -> None:
    good = np.zeros((4, 5), np.float32)
    bad = good.copy()
    bad[1, 2] = np.nan
    sides = (bad, good) if side == "the reference" else (good, bad)
    with pytest.raises(WeightError, match=f"{side} gives logits that are not finite in window 0"):
        Divergence().add([0, 1, 2, 3], *sides)


def test_logits_wait_on_disk_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_file.tempfile, "tempdir", str(tmp_path))
    windows = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    with LogitFile(windows=3, tokens=5, vocab=7) as kept:
        for window in windows:
            kept.write(window)
        np.testing.assert_array_equal([kept.read() for _ in windows], windows)
        assert list(tmp_path.iterdir()) == []  # it goes with the process


def test_a_disk_without_room_is_an_error_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(logit_file.shutil, "disk_usage", lambda path: usage(0, 0, 10**9))
    with pytest.raises(ConfigError, match=r"16 windows need 4\.2 GB .* has 1\.0 GB") as error:
        LogitFile(windows=16, tokens=2048, vocab=32000)
    assert "--max-windows 1, or TMPDIR" in error.value.hint
    monkeypatch.setattr(logit_file.shutil, "disk_usage", lambda path: usage(0, 0, 10**8))
    with pytest.raises(ConfigError) as error:
        LogitFile(windows=16, tokens=2048, vocab=32000)
    assert "a smaller --window, or TMPDIR" in error.value.hint


def test_two_schemes_of_one_checkpoint(checkpoint: Path, capsys: Capture, tmp_path: Path) -> None:
    cache = ["--cache-dir", str(tmp_path), "--dtype", "fp32"]
    document = evaluated(capsys, arguments(checkpoint, "--scheme", "w6a6", *cache))
    result = document["results"]
    assert document["config"]["scheme"] == "w6ax" and document["config"]["policy"]["default"] == 6
    assert result["reference"]["scheme"] == "fp16" and result["reference"]["dtype"] == "fp32"

    text = protocol_text(TEXT.read_bytes(), protocol="paper")
    oracle = Oracle()
    options: dict[str, Any] = {"dtype": "fp32", "cache_dir": tmp_path}
    with (
        LLM(checkpoint, scheme="fp16", **options) as a,
        LLM(checkpoint, scheme="w6a6", **options) as b,
    ):
        ids = a.tokenizer.encode(text)
        for start in range(0, 4 * WINDOW, WINDOW):
            window = ids[start : start + WINDOW]
            oracle.add(window, b.forward_logits(window)[:-1], a.forward_logits(window)[:-1])
    rows = 4 * (WINDOW - 1)
    assert result["positions"] == rows
    assert result["kl"]["mean"] == pytest.approx(oracle.kl_sum / rows, rel=1e-6)
    assert result["top1_agreement"]["mean"] == pytest.approx(oracle.agree / rows)
    assert result["perplexity"] == pytest.approx(oracle.perplexity_a, rel=1e-6)
    assert result["reference_perplexity"] == pytest.approx(oracle.perplexity_b, rel=1e-6)


def test_folders_of_one_checkpoint(folders: dict[str, Path], capsys: Capture) -> None:
    args = arguments(folders["w6a6"], "--against", str(folders["fp16"]))
    result = evaluated(capsys, args)["results"]
    assert result["kl"]["mean"] > 0 and result["top1_agreement"]["mean"] < 1
    assert run_cli([*args, "-q"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("KL divergence ") and "top-1 agreement" in out and "protocol paper" in out
    # Nothing but the policy differs.
    milder = evaluated(capsys, [*args, "--policy", "w6a16"])["results"]
    assert milder["kl"]["mean"] < result["kl"]["mean"]


@needs_mpi
def test_ranks_give_the_same_divergence(folders: dict[str, Path], capsys: Capture) -> None:
    args = arguments(folders["w6a6"], "--against", str(folders["fp16"]), "--policy", "w6a16")
    one, two = (
        evaluated(capsys, [*args, "--dtype", "fp32", "--tp", tp])["results"] for tp in ("1", "2")
    )
    assert two["kl"]["mean"] == pytest.approx(one["kl"]["mean"], rel=1e-3)


def test_layers_show_how_the_error_grows(folders: dict[str, Path], capsys: Capture) -> None:
    args = arguments(folders["w6a6"], "--against", str(folders["fp16"]), "--layers")
    entries = evaluated(capsys, args)["results"]["layers"]
    with LLM(folders["fp16"]) as llm:
        ids = llm.tokenizer.encode(protocol_text(TEXT.read_bytes(), protocol="paper"))[:WINDOW]
    engines = [_native.Engine(str(folders[name] / "1-gpu")) for name in ("fp16", "w6a6")]
    theirs, ours = ({t["name"]: t["x"] for t in engine.trace(ids)} for engine in engines)
    assert [entry["linear"] for entry in entries] == list(theirs)
    for entry in entries:
        x, y = theirs[entry["linear"]], ours[entry["linear"]]
        error = np.sqrt(((y - x) ** 2).sum() / (x**2).sum())
        assert entry["relative_error"] == pytest.approx(error, rel=1e-4, abs=1e-9)
    errors = {entry["linear"]: entry["relative_error"] for entry in entries}
    assert errors["layers.0.qkv"] == 0 < errors["layers.0.o"] < errors["lm_head"]
    assert run_cli([*args, "-q"]) == 0
    assert "gate_up" in capsys.readouterr().out
    assert run_cli([*args, "--tp", "2"]) == 2
    assert "one rank" in capsys.readouterr().err


def test_a_converted_folder_needs_the_float_one(folders: dict[str, Path], capsys: Capture) -> None:
    assert run_cli(arguments(folders["w6a6"])) == 2
    assert "a folder holds one scheme" in capsys.readouterr().err
    assert run_cli(arguments(folders["w6a6"], "--against", "nowhere")) == 2
    assert "--against nowhere is no folder" in capsys.readouterr().err


def test_another_model_is_no_reference_and_is_not_run(
    folders: dict[str, Path], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexq_ft.orchestrate.cli import eval_kl
    from tests.tools.checkpoints import make_checkpoint

    monkeypatch.setattr(eval_kl, "load_scorer", None)
    source = make_checkpoint(tmp_path / "hf", hidden=64, heads=2, positions=128, seed=1)
    convert(source, tmp_path / "other", ConvertOptions(scheme="fp16"))
    args = arguments(folders["w6a6"], "--against", str(tmp_path / "other"), "--json", "-q")
    assert run_cli(args) == 2
    document = json.loads(capsys.readouterr().out)
    validate(document, "eval-kl.json")
    assert "are not the same model" in document["error"]["message"]
    assert "sha256" in document["error"]["cause"]
