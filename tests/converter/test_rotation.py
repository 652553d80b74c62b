"""`--rotate`: the same logits from other weights, and what the folder says about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from flexq_ft import _native
from flexq_ft.converter import ConvertOptions, convert, open_source, plan, verify
from flexq_ft.converter.calibration import SampledRows, calibrate, cut_windows
from flexq_ft.converter.inspection import read_tensor
from flexq_ft.converter.transforms import RotatedSource
from flexq_ft.converter.transforms.orthogonal import Rotation
from flexq_ft.errors import ConfigError, WeightError
from tests.converter.conftest import folder_bytes
from tests.converter.test_resume import StopAfter
from tests.tools.checkpoints import TEXT, make_checkpoint

Checkpoint = Callable[[str], Path]
LLAMAS = ("llama-gqa", "llama-mha", "llama-one-kv", "qwen2", "mistral")
ROTATED = ConvertOptions(scheme="fp32", rotate=True)


@pytest.mark.parametrize("size", [1, 2, 12, 20, 28, 36, 64, 104, 128, 136, 576, 960])
def test_hadamard_matrices_are_orthogonal_and_even(size: int) -> None:
    matrix = Rotation(size, seed=3).apply(np.eye(size))
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(size), atol=1e-14)
    np.testing.assert_allclose(np.abs(matrix), size**-0.5, rtol=1e-12)
    assert Rotation(size, seed=3).kind == "hadamard"


@pytest.mark.parametrize("size", [3, 9, 30, 52, 258])
def test_other_sizes_are_orthogonal_and_nearly_even(size: int) -> None:
    matrix = Rotation(size, seed=3).apply(np.eye(size))
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(size), atol=1e-13)
    assert np.abs(matrix).max() <= (2 / size) ** 0.5 + 1e-12
    assert Rotation(size, seed=3).kind == "hartley"


def test_signs_are_those_of_the_seed() -> None:
    """Golden: a folder made again by any version of NumPy is the same."""
    ones = np.ones((1, 8))
    first = Rotation(8, seed=0).apply(ones)
    np.testing.assert_array_equal(first, Rotation(8, seed=0).apply(ones))
    assert not np.array_equal(first, Rotation(8, seed=1).apply(ones))
    np.testing.assert_allclose(
        first * 8**0.5, [[-2.0, -2.0, -2.0, -2.0, 6.0, -2.0, -2.0, -2.0]], atol=1e-12
    )


@pytest.mark.parametrize("name", LLAMAS)
def test_logits_stay(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    convert(checkpoint(name), tmp_path, ROTATED)
    ids = np.random.default_rng(1).integers(3, 320, 64).tolist()
    model = AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    actual = _native.Engine(str(tmp_path / "1-gpu")).forward(ids)
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", LLAMAS)
def test_ranks_hold_parts_of_the_same_weights(
    checkpoint: Checkpoint, tmp_path: Path, name: str
) -> None:
    convert(checkpoint(name), tmp_path, ConvertOptions(scheme="fp32", rotate=True, tp=(1, 2)))
    for layer in range(2):
        for stem in ("attention.dense", "mlp.down_proj"):
            tensor = f"model.layers.{layer}.{stem}.weight"
            whole = read_tensor(tmp_path / "1-gpu", tensor)[0].values
            parts = [read_tensor(tmp_path / "2-gpu", tensor, rank=r)[0].values for r in (0, 1)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_weights_are_rotated(checkpoint: Checkpoint) -> None:
    """By dense products in float64, with the matrices themselves."""
    source = open_source(checkpoint("llama-gqa"))
    rotated = RotatedSource(source)

    def read(view: object, name: str, rows: int) -> np.ndarray:
        return np.concatenate(
            [view.read_rows(name, b, min(b + 50, rows)) for b in range(0, rows, 50)]  # type: ignore[attr-defined]
        ).astype(np.float64)

    q = Rotation(192, seed=0).apply(np.eye(192))
    r = Rotation(32, seed=1).apply(np.eye(32))
    layer = "model.layers.1."
    gain = read(source, layer + "input_layernorm.weight", 192)
    np.testing.assert_array_equal(read(rotated, layer + "input_layernorm.weight", 192), 1.0)
    v = np.kron(np.eye(2), r.T) @ (read(source, layer + "self_attn.v_proj.weight", 64) * gain) @ q
    actual = read(rotated, layer + "self_attn.v_proj.weight", 64)
    np.testing.assert_allclose(actual, v, rtol=0, atol=1e-6)
    o = q.T @ read(source, layer + "self_attn.o_proj.weight", 192) @ np.kron(np.eye(6), r)
    actual = read(rotated, layer + "self_attn.o_proj.weight", 192)
    np.testing.assert_allclose(actual, o, rtol=0, atol=1e-6)
    down = q.T @ read(source, layer + "mlp.down_proj.weight", 192)
    actual = read(rotated, layer + "mlp.down_proj.weight", 192)
    np.testing.assert_allclose(actual, down, rtol=0, atol=1e-6)
    source.close()


def test_a_tied_model_gets_a_head_of_its_own(checkpoint: Checkpoint, tmp_path: Path) -> None:
    planned = plan(checkpoint("llama-one-kv"), ROTATED)
    assert any("a head of its own, of 40,960 weights" in text for text in planned.warnings)
    convert(checkpoint("llama-one-kv"), tmp_path, ROTATED)
    manifest = json.loads((tmp_path / "1-gpu/manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["tie_word_embeddings"] is False
    assert "model.lm_head.weight.bin" in manifest["files"]


def test_a_rotated_model_can_be_calibrated(checkpoint: Checkpoint) -> None:
    """The layers' inputs are the unrotated model's, rotated."""
    windows = cut_windows(
        TEXT.encode(), open_source(checkpoint("llama-one-kv")), sequences=2, length=32
    )
    sources = (
        open_source(checkpoint("llama-one-kv")),
        RotatedSource(open_source(checkpoint("llama-one-kv"))),
    )
    assert sources[1].hf_config()["tie_word_embeddings"] is False
    plain, rotated = (
        [layer.statistics for layer in calibrate(source, windows, lambda _: SampledRows(1))]
        for source in sources
    )
    down = [layer["layers.1.down"].result() for layer in (plain[1], rotated[1])]
    np.testing.assert_allclose(down[0], down[1], rtol=0, atol=1e-5 * np.abs(down[0]).max())
    gain = sources[0].read_rows("model.layers.1.input_layernorm.weight", 0, 128)
    q = Rotation(128, seed=0).apply(np.eye(128))
    expected = (plain[1]["layers.1.qkv"].result() / gain) @ q
    actual = rotated[1]["layers.1.qkv"].result()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for source in sources:
        source.close()


def test_a_tied_model_without_final_weights_stays_tied(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", hidden=128, tied=True)
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.model.norm.weight.fill_(1.0)
    model.save_pretrained(source)
    assert plan(source, ROTATED).warnings == ()
    convert(source, tmp_path / "out", ROTATED)
    assert not (tmp_path / "out/1-gpu/model.lm_head.weight.bin").exists()


def test_layer_norm_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--rotate needs a model with RMS norms") as caught:
        convert(checkpoint("opt"), tmp_path, ROTATED)
    assert "mean" in caught.value.cause
    assert list(tmp_path.iterdir()) == []


def test_a_faulty_checkpoint_is_an_error_of_its_own(
    own_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = own_checkpoint("llama-gqa")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["intermediate_size"] = 401
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(WeightError, match="do not fit its architecture"):
        convert(source, tmp_path, ROTATED)


def test_the_manifest_says_it(checkpoint: Checkpoint, repo_root: Path, tmp_path: Path) -> None:
    options = ConvertOptions(scheme="w6ax", rotate=True, tp=(1, 2))
    convert(checkpoint("llama-gqa"), tmp_path, options)
    manifest = json.loads((tmp_path / "2-gpu/manifest.json").read_text(encoding="utf-8"))
    schema = (repo_root / "configs/schemas/manifest.json").read_text(encoding="utf-8")
    jsonschema.validate(manifest, json.loads(schema))
    assert manifest["transforms"] == [
        {"name": "rotation", "residual": "hadamard", "heads": "hadamard", "seed": 0}
    ]
    assert verify(tmp_path / "1-gpu") == []
    _native.open_model_folder(str(tmp_path / "1-gpu"))
    again = convert(checkpoint("llama-gqa"), tmp_path, options)
    assert [folder.action for folder in again.folders] == ["verified", "verified"]
    with pytest.raises(ConfigError, match="other options") as caught:
        convert(checkpoint("llama-gqa"), tmp_path, ConvertOptions(scheme="w6ax"))
    assert "it has rotation (heads hadamard" in caught.value.cause
    assert "no transform" in caught.value.cause


def test_an_interrupted_rotation_ends_in_the_same_bytes(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    options = ConvertOptions(scheme="w6ax", rotate=True)
    convert(checkpoint("llama-mha"), tmp_path / "whole", options)
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint("llama-mha"), tmp_path / "out", options, progress=StopAfter(9))
    sink = StopAfter(-1)
    report = convert(checkpoint("llama-mha"), tmp_path / "out", options, progress=sink)
    assert report.folders[0].action == "resumed"
    assert 0 < sink.total <= len(report.plan.units) - 9 + 1
    assert folder_bytes(tmp_path / "out/1-gpu") == folder_bytes(tmp_path / "whole/1-gpu")


@pytest.mark.parametrize(("key", "value"), [("name", "mirror"), ("residual", "random"), ("by", 1)])
def test_the_runtime_refuses_a_transform_that_it_does_not_know(
    checkpoint: Checkpoint, tmp_path: Path, key: str, value: object
) -> None:
    convert(checkpoint("qwen2"), tmp_path, ROTATED)
    path = tmp_path / "1-gpu/manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["transforms"][0][key] = value
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(WeightError, match=rf"transforms\[0\]\.{key}"):
        _native.open_model_folder(str(tmp_path / "1-gpu"))
