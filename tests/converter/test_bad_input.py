"""Faulty checkpoints: a typed error that names the thing, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flexq_ft.converter import ConvertOptions, convert, open_source, plan
from flexq_ft.errors import ConfigError, WeightError
from tests.converter.conftest import folder_bytes

Own = Callable[[str], Path]


def refused(source: Path, out: Path, **options: Any) -> WeightError:
    """The WeightError of a conversion, after which nothing is left of its output."""
    with pytest.raises(WeightError) as caught:
        convert(source, out, ConvertOptions(**options))
    assert not out.exists()
    return caught.value


def merged(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a sharded checkpoint, which becomes a single file."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    return tensors


def test_all_tensor_faults_are_reported_at_once(own_checkpoint: Own, tmp_path: Path) -> None:
    source = own_checkpoint("llama-gqa")
    tensors = merged(source)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(32, np.float32)
    tensors["model.layers.1.mlp.down_proj.weight"] = np.ones((192, 401), np.float32)
    save_file(tensors, source / "model.safetensors")
    error = refused(source, tmp_path / "out", scheme="w6ax")
    assert "4 tensors of own-llama-gqa do not fit" in error.message
    assert "(2 missing, 1 unexpected, 1 of the wrong shape)" in error.message
    for named in (
        "missing: model.layers.0.mlp.up_proj.weight [400, 192]",
        "missing: model.norm.weight [192]",
        "unexpected: model.layers.0.self_attn.q_norm.weight",
        "shape of model.layers.1.mlp.down_proj.weight: [192, 401], expected [192, 400]",
    ):
        assert named in error.cause


def test_a_layer_too_many_is_unexpected(own_checkpoint: Own, tmp_path: Path) -> None:
    source = own_checkpoint("opt")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = 1
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    error = refused(source, tmp_path / "out")
    assert "(0 missing, 16 unexpected" in error.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", ["fp32", "bf16", "w8a16", "w6ax"])
def test_a_weight_that_is_not_finite(
    own_checkpoint: Own, tmp_path: Path, value: float, scheme: str
) -> None:
    source = own_checkpoint("llama-gqa")
    tensors = merged(source)
    tensors["model.layers.1.mlp.gate_proj.weight"][17, 130] = value
    tensors["model.layers.1.mlp.gate_proj.weight"][300, 0] = value
    save_file(tensors, source / "model.safetensors")
    error = refused(source, tmp_path / "out", scheme=scheme, tp=(1, 2))
    assert "model.layers.1.mlp.gate_proj.weight[17, 130]" in error.message
    assert error.values["index"] == [17, 130]


def test_not_finite_in_a_norm_and_past_the_first_block(own_checkpoint: Own, tmp_path: Path) -> None:
    source = own_checkpoint("opt")
    tensors = merged(source)
    # The file's table has two more rows than the folder's: the index is the file's.
    tensors["model.decoder.embed_positions.weight"][250, 3] = np.nan
    save_file(tensors, source / "model.safetensors")
    assert "embed_positions.weight[250, 3]" in refused(source, tmp_path / "out").message
    tensors["model.decoder.embed_positions.weight"][250, 3] = 0
    tensors["model.decoder.final_layer_norm.bias"][199] = np.inf
    save_file(tensors, source / "model.safetensors")
    assert "final_layer_norm.bias[199]" in refused(source, tmp_path / "out").message


def test_a_weight_beyond_fp16(own_checkpoint: Own, tmp_path: Path) -> None:
    source = own_checkpoint("llama-gqa")
    tensors = merged(source)
    tensors["model.embed_tokens.weight"][5, 6] = -70000.0
    save_file(tensors, source / "model.safetensors")
    error = refused(source, tmp_path / "out", scheme="w6ax")
    assert "model.embed_tokens.weight[5, 6] is -70000, beyond fp16" in error.message
    assert "--dtype bf16" in error.hint
    convert(source, tmp_path / "out", ConvertOptions(scheme="w6ax", dtype="bf16"))


def test_a_group_whose_scale_is_beyond_fp16(own_checkpoint: Own, tmp_path: Path) -> None:
    source = own_checkpoint("llama-gqa")
    tensors = merged(source)
    tensors["model.layers.0.self_attn.o_proj.weight"][9, 1] = 65520.0 * 31
    save_file(tensors, source / "model.safetensors")
    error = refused(source, tmp_path / "out", scheme="w6ax")
    assert "model.layers.0.self_attn.o_proj.weight" in error.message


@pytest.mark.parametrize("change", ["short", "long", "header", "empty"])
def test_damaged_weight_files(own_checkpoint: Own, tmp_path: Path, change: str) -> None:
    source = own_checkpoint("qwen2")
    path = sorted(source.glob("*.safetensors"))[1]
    data = path.read_bytes()
    path.write_bytes(
        {
            "short": data[:-1],
            "long": data + b"\0",
            "header": b"\xff" * 8 + data[8:],
            "empty": b"",
        }[change]
    )
    assert path.name in refused(source, tmp_path / "out").message


def test_index_and_files_that_disagree(own_checkpoint: Own, tmp_path: Path) -> None:
    source = own_checkpoint("qwen2")
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    files = sorted(set(content["weight_map"].values()))
    content["weight_map"]["model.norm.weight"] = files[0]
    index.write_text(json.dumps(content), encoding="utf-8")
    assert "model.norm.weight" in refused(source, tmp_path / "out").cause
    content["weight_map"]["model.norm.weight"] = "../outside.safetensors"
    index.write_text(json.dumps(content), encoding="utf-8")
    assert "not a file name" in refused(source, tmp_path / "out").message


def test_a_missing_shard_is_named(own_checkpoint: Own, tmp_path: Path) -> None:
    source = own_checkpoint("qwen2")
    path = sorted(source.glob("*.safetensors"))[0]
    path.unlink()
    error = refused(source, tmp_path / "out")
    assert "weight files of own-qwen2 are missing" in error.message
    assert error.cause == path.name


def test_config_faults(own_checkpoint: Own, tmp_path: Path) -> None:
    source = own_checkpoint("qwen2")
    (source / "config.json").write_text("{", encoding="utf-8")
    assert "config.json is not valid JSON" in refused(source, tmp_path / "out").message
    (source / "config.json").unlink()
    assert "config.json is missing" in refused(source, tmp_path / "out").message


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_called_one(own_checkpoint: Own, tmp_path: Path, name: str) -> None:
    source = own_checkpoint("qwen2")
    save_file(merged(source), source / "model.safetensors")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 11547072\n"
    (source / name).write_text(pointer, encoding="utf-8")
    error = refused(source, tmp_path / "out")
    assert f"{name} is a Git LFS pointer" in error.message and "git lfs pull" in error.hint


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_cut_tokenizer_is_found_before_the_weights_are_read(
    own_checkpoint: Own, tmp_path: Path, name: str
) -> None:
    source = own_checkpoint("qwen2")
    (source / name).write_text('{"model": {"vocab": {', encoding="utf-8")
    assert f"{name} is not valid JSON" in refused(source, tmp_path / "out").message


def test_shards_without_their_index_and_an_adapter_without_its_model(own_checkpoint: Own) -> None:
    source = own_checkpoint("qwen2")
    (source / "model.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match=r"but no model\.safetensors\.index\.json"):
        open_source(source)
    (source / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="is an adapter"):
        open_source(source)


@pytest.mark.parametrize("scheme", ["fp16", "w6ax"])
def test_a_tied_models_own_head_must_be_the_embedding(
    own_checkpoint: Own, tmp_path: Path, scheme: str
) -> None:
    source = own_checkpoint("llama-one-kv")
    tensors = merged(source)
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.copy()
    save_file(tensors, source / "model.safetensors")
    convert(source, tmp_path / "copy", ConvertOptions(scheme=scheme))
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, source / "model.safetensors")
    error = refused(source, tmp_path / "out", scheme=scheme)
    assert "lm_head.weight of own-llama-one-kv is not model.embed_tokens.weight" in error.message
    assert '"tie_word_embeddings": false' in error.hint


def test_paths_that_hold_no_checkpoint(checkpoint: Own, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="org/a-model does not exist") as caught:
        open_source("org/a-model")
    assert caught.value.hint.startswith("a Hugging Face folder")  # a folder may be meant as well
    assert caught.value.hint.endswith("hf download org/a-model --local-dir a-model")
    with pytest.raises(ConfigError, match="does not exist"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        open_source(tmp_path)
    (tmp_path / "x.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="is no checkpoint"):
        open_source(tmp_path / "x.txt")
    convert(checkpoint("qwen2"), tmp_path / "out", ConvertOptions())
    for folder in (tmp_path / "out", tmp_path / "out/1-gpu"):
        with pytest.raises(ConfigError, match="FasterTransformer or flexq-ft folder"):
            open_source(folder)


def test_a_size_that_does_not_divide_writes_nothing(checkpoint: Own, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not divide the 6 attention heads"):
        convert(checkpoint("llama-gqa"), tmp_path / "out", ConvertOptions(tp=(1, 4)))
    assert not (tmp_path / "out").exists()


def test_out_is_not_named_as_a_folder_inside_it(checkpoint: Own, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2-gpu, which is how a folder inside OUT is named") as no:
        convert(checkpoint("llama-gqa"), tmp_path / "out" / "2-gpu", ConvertOptions())
    assert no.value.hint == f"{tmp_path / 'out'} as OUT"
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_noticed_before_writing(
    checkpoint: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match=r"but its disk has 1,000 left"):
        convert(checkpoint("qwen2"), tmp_path / "out", ConvertOptions())
    assert not (tmp_path / "out").exists()


def test_a_plan_writes_nothing(checkpoint: Own, tmp_path: Path) -> None:
    source = checkpoint("qwen2")
    before = folder_bytes(source)
    found = plan(source, ConvertOptions(scheme="w6ax", tp=(1, 2)))
    assert [target.shards.size for target in found.targets] == [1, 2]
    ranks = [found.targets[1].rank_bytes(rank) for rank in (0, 1)]
    assert all(0 < size < found.targets[1].total_bytes for size in ranks)
    assert folder_bytes(source) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "int4"}, "unknown scheme 'int4'"),
        ({"scheme": "fp16", "dtype": "bf16"}, "--scheme fp16 means fp16 files"),
        ({"scheme": "flexq", "policy": "w6a8"}, "names its policy"),
        ({"scheme": "w8a8", "policy": "w6a8"}, "applies to w6ax only"),
        ({"tp": (2, 2)}, "distinct sizes of at least 1, not 2, 2"),
        ({"tp": (0,)}, "distinct sizes of at least 1, not 0$"),
        ({"jobs": 0}, "--jobs"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConvertOptions(**options)
