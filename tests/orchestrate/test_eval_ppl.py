"""`flexq-ft eval ppl` on a tiny random model: against transformers, its schema, what it refuses."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.eval.perplexity import protocol_text
from flexq_ft.orchestrate.eval.text import load_text
from tests.orchestrate.schemas import validate
from tests.tools.mpi import needs_mpi

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Capture = pytest.CaptureFixture[str]

WINDOW = 64
TEXT = Path(__file__).parents[2] / "configs" / "texts" / "river-lock.txt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tools.checkpoints import make_checkpoint

    folder = tmp_path_factory.mktemp("hf") / "tiny"
    return make_checkpoint(folder, hidden=128, heads=4, kv_heads=2, inter=256, positions=128)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def arguments(checkpoint: Path, cache: Path, *more: str) -> list[str]:
    text = ["--text", str(TEXT), "--window", str(WINDOW), "--max-windows", "5"]
    return ["eval", "ppl", str(checkpoint), "--cache-dir", str(cache), *text, *more]


def evaluated(capsys: Capture, args: list[str]) -> dict[str, Any]:
    assert run_cli([*args, "--json", "-q"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    validate(document, "eval-ppl.json")
    return document


@pytest.mark.parametrize("protocol", ["paper", "raw"])
def test_window_losses_are_those_of_transformers(
    checkpoint: Path, cache: Path, capsys: Capture, protocol: Any
) -> None:
    args = arguments(checkpoint, cache, "--dtype", "fp32", "--protocol", protocol)
    result = evaluated(capsys, args)["results"]
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(protocol_text(TEXT.read_bytes(), protocol=protocol))["input_ids"]
    losses = []
    for start in range(0, 5 * WINDOW, WINDOW):
        window = torch.tensor([ids[start : start + WINDOW]])
        with torch.no_grad():
            losses.append(model(window, labels=window).loss.item())
    np.testing.assert_allclose(result["window_losses"], losses, rtol=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert (result["protocol"], result["window"], result["windows"]) == (protocol, WINDOW, 5)
    low, high = result["confidence95"]
    # Student's t for 4 degrees of freedom.
    half = 2.78 * np.std(losses, ddof=1) / math.sqrt(5)
    assert math.log(high / low) == pytest.approx(2 * half, rel=1e-3)
    assert low < result["perplexity"] < high


def test_screen_names_protocol_and_text(checkpoint: Path, cache: Path, capsys: Capture) -> None:
    assert run_cli(arguments(checkpoint, cache)) == 0
    captured = capsys.readouterr()
    value, description = captured.out.splitlines()
    assert value.startswith("perplexity ") and "95 %" in value
    assert "protocol paper" in description and f"window {WINDOW}" in description
    assert "perplexity: 100 % (5 of 5" in captured.err


def test_scheme_and_policy_are_the_engines(checkpoint: Path, cache: Path, capsys: Capture) -> None:
    losses = {}
    for scheme in ("fp16", "w8a8", "w6a8", "w6a6"):
        document = evaluated(capsys, arguments(checkpoint, cache, "--scheme", scheme))
        losses[scheme] = document["results"]["loss"]
        config = document["config"]
        assert config["scheme"] == ("w6ax" if scheme.startswith("w6") else scheme)
        assert config["model"] == str(checkpoint) and config["max_len"] == WINDOW
    assert len(set(losses.values())) == 4


@needs_mpi
def test_ranks_give_the_same_number(checkpoint: Path, cache: Path, capsys: Capture) -> None:
    one = evaluated(capsys, arguments(checkpoint, cache, "--dtype", "fp32"))["results"]
    two = evaluated(capsys, arguments(checkpoint, cache, "--dtype", "fp32", "--tp", "2"))["results"]
    np.testing.assert_allclose(two["window_losses"], one["window_losses"], rtol=1e-5)


def test_against_compares_window_by_window(
    checkpoint: Path, cache: Path, capsys: Capture, tmp_path: Path
) -> None:
    saved = tmp_path / "fp16.json"
    assert run_cli([*arguments(checkpoint, cache), "--save", str(saved)]) == 0
    before = json.loads(saved.read_text())["results"]
    capsys.readouterr()
    args = arguments(checkpoint, cache, "--scheme", "w6a6", "--against", str(saved))
    result = evaluated(capsys, args)["results"]
    against = result["against"]
    assert against["ratio"] == pytest.approx(result["perplexity"] / before["perplexity"])
    differences = np.array(result["window_losses"]) - before["window_losses"]
    half = 2.78 * differences.std(ddof=1) / math.sqrt(5)
    expected = np.exp([differences.mean() - half, differences.mean() + half])
    np.testing.assert_allclose(against["ratio_confidence95"], expected, rtol=1e-3)
    assert run_cli(args) == 0
    assert f"times that of {saved}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--protocol", "raw"], "protocol raw, there paper"),
        (["--window", "32"], "window 32, there 64"),
        (["--max-windows", "4"], "windows 4, there 5"),
        (["--text", __file__], "text_sha256"),
    ],
)
def test_unlike_results_are_refused_before_the_evaluation(
    checkpoint: Path, cache: Path, capsys: Capture, tmp_path: Path, changed: list[str], named: str
) -> None:
    saved = tmp_path / "saved.json"
    assert run_cli([*arguments(checkpoint, cache), "--save", str(saved)]) == 0
    capsys.readouterr()
    assert run_cli(arguments(checkpoint, cache, *changed, "--against", str(saved))) == 2
    captured = capsys.readouterr()
    assert named in captured.err and "--protocol paper --window 64" in captured.err
    assert "perplexity: " not in captured.err and captured.out == ""


@pytest.mark.parametrize("content", ["", "[]", '{"schema": "flexq-ft/run/1"}', '{"schema": 1}'])
def test_what_is_no_result_is_refused(
    checkpoint: Path, cache: Path, capsys: Capture, tmp_path: Path, content: str
) -> None:
    other = tmp_path / "other.json"
    other.write_text(content)
    assert run_cli(arguments(checkpoint, cache, "--against", str(other))) == 2
    assert f"{other} cannot be compared with" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["ppl", "kl"])
@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b"a \xff", [], "not UTF-8: byte 0xff at offset 2"),
        (b"a text", ["--window", "1"], "--window is 1"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_before_a_model_is_loaded(
    capsys: Capture, tmp_path: Path, verb: str, content: bytes, more: list[str], message: str
) -> None:
    (tmp_path / "text").write_bytes(content)
    args = ["eval", verb, str(tmp_path / "no model"), "--text", str(tmp_path / "text"), *more]
    assert run_cli(args) == 2
    assert message in capsys.readouterr().err


def test_errors_are_documents_of_the_schema(checkpoint: Path, cache: Path, capsys: Capture) -> None:
    args = ["eval", "ppl", str(checkpoint), "--cache-dir", str(cache), "--json", "-q"]
    for more in (["--text", "nowhere.txt"], ["--text", str(TEXT), "--window", "129"]):
        assert run_cli([*args, *more]) == 2
        captured = capsys.readouterr()
        document = json.loads(captured.out)
        validate(document, "eval-ppl.json")
        assert document["error"]["kind"] == "ConfigError" and document["error"]["try"]
        assert "nowhere.txt" in captured.err or "129 tokens" in captured.err


def fake_datasets(monkeypatch: pytest.MonkeyPatch, rows: list[str], calls: list[Any]) -> None:
    class Rows:
        def __getitem__(self, key: Any) -> Any:
            return rows if key == "text" else {"text": rows[key]}

    def load_dataset(path: str, **options: Any) -> Rows:
        calls.append((path, options))
        if not rows:
            raise ConnectionError("no network")
        return Rows()

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_wikitext_by_name_is_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file = b" \n = Title = \n \n One line . \n \n"
    rows = ["", " = Title = \n", "", " One line . \n", ""]  # as the script yields them
    calls: list[Any] = []
    fake_datasets(monkeypatch, rows, calls)
    text = load_text("wikitext2")
    assert text.data == file and text.protocol == "paper"
    assert protocol_text(text.data, protocol="paper") == "\n\n".join(rows)
    assert calls == [("Salesforce/wikitext", {"name": "wikitext-2-raw-v1", "split": "test"})]


def test_c4_by_name_is_documents_joined_by_spaces(
    checkpoint: Path, cache: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [f"Document {n}.\nIts second line." for n in range(1200)]
    calls: list[Any] = []
    fake_datasets(monkeypatch, documents, calls)
    text = load_text("c4")
    assert text.data.decode() == " ".join(documents[:1100]) and text.protocol == "raw"
    assert calls[0][0] == "allenai/c4" and calls[0][1]["split"] == "validation"
    args = arguments(checkpoint, cache, "--text", "c4", "--max-windows", "1")
    assert evaluated(capsys, args)["results"]["protocol"] == "raw"
    assert run_cli([*args, "--protocol", "paper"]) == 2
    assert "--protocol raw" in capsys.readouterr().err


def test_a_text_may_come_through_a_pipe(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, "a téxt".encode())
    os.close(writer)
    try:
        assert load_text(f"/dev/fd/{reader}").data.decode() == "a téxt"
    finally:
        os.close(reader)
    with pytest.raises(ConfigError, match="is no file, and no data set"):
        load_text(str(tmp_path))


def test_names_without_network_or_package_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, [], [])
    with pytest.raises(ConfigError, match="Salesforce/wikitext could not be loaded") as error:
        load_text("wikitext2")
    assert "no network" in error.value.cause and "--text FILE" in error.value.hint
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="needs the package `datasets`") as error:
        load_text("c4")
    assert "flexq-ft[eval]" in error.value.hint
