"""Quantised heads: their files against the checkpoint's tensors, and what manifest and CLI say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.converter import ConvertOptions, convert, verify
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.cli.main import run_cli
from tests.converter.layout_oracle import read_tensors
from tests.reference.packing import unpack_int6
from tests.reference.quantization import weight_int6, weight_int8
from tests.tools.checkpoints import make_checkpoint

Checkpoint = Callable[[str], Path]

# Its head in the checkpoint: a tied one's is the embedding.
HEADS = {
    "llama-gqa": "lm_head.weight",
    "llama-one-kv": "model.embed_tokens.weight",
    "opt": "model.decoder.embed_tokens.weight",
}


def stored(folder: Path, lm_head: str, ranks: int) -> tuple[Any, Any]:
    """Codes [vocab, hidden] and scales [vocab, groups], of all ranks together."""
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    kind = {"w8": "w8", "w6": "int6"}[lm_head]
    codes, scales = [], []
    for rank in range(ranks):
        name = f"model.lm_head.weight.{kind}.{rank}.bin"
        shape = files[name]["shape"]
        raw = np.fromfile(folder / name, np.uint8)
        part = unpack_int6(raw, *shape) if lm_head == "w6" else raw.view(np.int8).reshape(shape)
        codes.append(part)
        raw = np.fromfile(folder / f"model.lm_head.weight.{kind}.scale.{rank}.bin", np.uint8)
        if lm_head == "w6":
            scales.append(raw.view(np.float16).reshape(-1, shape[0]).T)
        else:
            scales.append(raw.view(np.float32)[:, None])
    return np.concatenate(codes), np.concatenate(scales)


@pytest.mark.parametrize("lm_head", ["w8", "w6"])
@pytest.mark.parametrize("scheme", ["fp16", "w6ax"])
@pytest.mark.parametrize("name", list(HEADS))
def test_head_files_are_the_oracles_on_every_number_of_ranks(
    checkpoint: Checkpoint, tmp_path: Path, repo_root: Path, name: str, scheme: str, lm_head: str
) -> None:
    source = checkpoint(name)
    sizes = (1, 2)
    convert(source, tmp_path, ConvertOptions(scheme=scheme, lm_head=lm_head, tp=sizes))
    w = read_tensors(source)[HEADS[name]].astype(np.float32)
    codes, scales = (weight_int8 if lm_head == "w8" else weight_int6)(w)
    schema = json.loads((repo_root / "configs/schemas/manifest.json").read_text(encoding="utf-8"))
    for tp in sizes:
        folder = tmp_path / f"{tp}-gpu"
        ours = stored(folder, lm_head, tp)
        np.testing.assert_array_equal(ours[0], codes)
        np.testing.assert_array_equal(ours[1], scales.reshape(len(codes), -1))
        assert not (folder / "model.lm_head.weight.bin").exists()
        assert list(folder.glob("model.wte*.bin"))  # the embedding stays float
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        jsonschema.validate(manifest, schema)
        assert manifest["quantization"]["lm_head"] == lm_head
        opened = _native.open_model_folder(str(folder))
        assert (opened.lm_head, opened.scheme) == (lm_head, scheme)
        assert verify(folder) == []


def test_shares_of_an_odd_vocabulary(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "hf", tokenizer=False, vocab=325)
    convert(source, tmp_path / "out", ConvertOptions(lm_head="w6", tp=(1, 2, 4)))
    whole = stored(tmp_path / "out" / "1-gpu", "w6", 1)
    for tp, last in ((2, 162), (4, 79)):
        folder = tmp_path / "out" / f"{tp}-gpu"
        for part, expected in zip(stored(folder, "w6", tp), whole, strict=True):
            np.testing.assert_array_equal(part, expected)
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        assert files[f"model.lm_head.weight.int6.{tp - 1}.bin"]["shape"][0] == last
        _native.open_model_folder(str(folder))


def test_a_rank_without_a_row_of_the_head_is_refused(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "hf", tokenizer=False, vocab=9, heads=8)
    with pytest.raises(ConfigError, match="tensor parallel size 8 leaves a rank no row"):
        convert(source, tmp_path / "out", ConvertOptions(lm_head="w8", tp=(8,)))
    assert not (tmp_path / "out").exists()


def test_a_float_head_is_as_it_was(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for options in (ConvertOptions(), ConvertOptions(lm_head="fp16")):
        convert(checkpoint("llama-gqa"), tmp_path, options)
    manifest = json.loads((tmp_path / "1-gpu" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["quantization"] is None
    assert "model.lm_head.weight.bin" in manifest["files"]


def test_another_head_is_another_conversion(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("opt")
    convert(source, tmp_path, ConvertOptions(scheme="w8a8", lm_head="w8"))
    report = convert(source, tmp_path, ConvertOptions(scheme="w8a8", lm_head="w8"))
    assert report.folders[0].action == "verified"
    assert [row.linear for row in report.quality].count("lm_head") == 1
    with pytest.raises(ConfigError, match="came from another source or other options") as error:
        convert(source, tmp_path, ConvertOptions(scheme="w8a8"))
    assert error.value.cause == "its lm_head: w8, this conversion's: fp16"
    head = tmp_path / "1-gpu" / "model.lm_head.weight.w8.0.bin"
    data = head.read_bytes()
    head.write_bytes(b"\0" * len(data))
    report = convert(source, tmp_path, ConvertOptions(scheme="w8a8", lm_head="w8"))
    assert report.folders[0].action == "repaired" and head.read_bytes() == data


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown lm_head 'w4'") as error:
        ConvertOptions(lm_head="w4")
    assert error.value.hint == "--lm-head fp16 | w8 | w6"


def test_command_lines_show_the_head(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(checkpoint("llama-one-kv")), str(tmp_path)
    arguments = ["convert", source, out, "--scheme", "flexq", "--lm-head", "w8"]
    assert run_cli([*arguments, "--dry-run", "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["config"]["lm_head"] == "w8"
    stored_as = {row["tensor"]: row["scheme"] for row in document["results"]["tensors"]}
    assert stored_as["model.lm_head.weight"] == "w8"
    assert stored_as["model.wte.weight"] == "fp16"
    assert stored_as["model.layers.0.attention.dense.weight"] == "w6ax"
    bits = document["results"]["folders"][0]["bits_per_weight"]
    assert run_cli([*arguments, "-q"]) == 0
    capsys.readouterr()
    assert run_cli(["inspect", out, "--json", "-q"]) == 0
    inspected = json.loads(capsys.readouterr().out)["results"]
    assert inspected["manifest"]["quantization"]["lm_head"] == "w8"
    assert inspected["bits_per_weight"] == bits  # of the layers' linears
    assert run_cli(["inspect", out]) == 0
    assert "lm_head" in capsys.readouterr().out
    assert run_cli(["inspect", out, "lm_head", "--json", "-q"]) == 0
    (tensor,) = json.loads(capsys.readouterr().out)["results"]
    assert tensor["file"] == "model.lm_head.weight.w8.0.bin" and tensor["dtype"] == "int8"
    assert run_cli(["convert", source, out, "--lm-head", "w4"]) == 2
    assert "'w4' is not one of" in capsys.readouterr().err
