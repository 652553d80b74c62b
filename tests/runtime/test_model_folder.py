"""Model folders through the binding: what FasterTransformer's scripts write, and strict readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.errors import ConfigError, WeightError
from tests.tools import ft_folder
from tests.tools.checkpoints import random_tensors

LLAMA: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 71,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT: dict[str, Any] = {
    "hidden_size": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 50,
    "vocab_size": 71,
    "bos_token_id": 2,
    "eos_token_id": 2,
}


def llama_folder(out: Path, **options: Any) -> Path:
    tensors = random_tensors("llama", LLAMA)
    return ft_folder.write_ft_folder(out, tensors, LLAMA, style="llama2", **options)


def opt_folder(out: Path, **options: Any) -> Path:
    tensors = random_tensors("opt", OPT)
    return ft_folder.write_ft_folder(out, tensors, OPT, style="opt", **options)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("tp", [1, 2])
def test_ft_llama_folder_opens_without_manifest(tmp_path: Path, tp: int, dtype: str) -> None:
    folder = _native.open_model_folder(str(llama_folder(tmp_path, tp=tp, dtype=dtype)))
    config = folder.config
    assert (folder.tp, folder.dtype, folder.scheme) == (tp, dtype, "fp16")
    assert not folder.has_manifest
    assert (config.architecture, config.norm, config.activation) == ("llama", "rms", "silu")
    assert (config.hidden_size, config.num_heads, config.num_kv_heads) == (64, 4, 2)
    assert (config.inter_size, config.vocab_size, config.eos_ids) == (96, 71, [2])
    assert config.norm_eps == 1e-6
    assert config.rope is not None
    assert config.rope["theta"] == 10000.0
    assert config.rope["type"] == "default"
    assert folder.shards.heads == [[4 * r // tp, 4 * (r + 1) // tp] for r in range(tp)]
    assert folder.files == {}


def test_ft_llama_v1_ini_says_neither_kv_heads_nor_ranks(tmp_path: Path) -> None:
    config = LLAMA | {"num_key_value_heads": 4}
    tensors = random_tensors("llama", config)
    path = ft_folder.write_ft_folder(tmp_path, tensors, config, style="llama", tp=2)
    folder = _native.open_model_folder(str(path))
    assert (folder.tp, folder.config.num_kv_heads) == (2, 4)


def test_ft_opt_folder_reads_the_second_full_table(tmp_path: Path) -> None:
    path = opt_folder(tmp_path, tp=2)
    config = _native.open_model_folder(str(path)).config
    assert (config.architecture, config.norm, config.activation) == ("opt", "layer", "relu")
    assert config.norm_eps == 1e-5
    assert config.rope is None
    assert config.qkv_bias and config.dense_bias and config.ffn_bias
    assert not config.tie_word_embeddings
    (path / "model.lm_head.weight.bin").unlink()
    assert _native.open_model_folder(str(path)).config.tie_word_embeddings


def test_qkv_columns_are_those_of_the_facts(tmp_path: Path) -> None:
    """file_r[k][slot][c] = W_slot[r * H/N + c][k], checked on single elements."""
    tensors = random_tensors("opt", OPT)
    path = ft_folder.write_ft_folder(tmp_path, tensors, OPT, style="opt", dtype="fp32", tp=2)
    raw = (path / "model.layers.1.attention.query_key_value.weight.1.bin").read_bytes()
    file = np.frombuffer(raw, np.float32).reshape(64, 3, 32)
    for slot, name in enumerate("qkv"):
        weight = tensors[f"model.decoder.layers.1.self_attn.{name}_proj.weight"]
        assert file[5, slot, 7] == weight[32 + 7, 5]


def test_unknown_ini_key_names_the_nearest(tmp_path: Path) -> None:
    path = llama_folder(tmp_path)
    ini = path / "config.ini"
    ini.write_text(ini.read_text().replace("kv_head_num", "kv_heads_num"))
    with pytest.raises(WeightError, match=r"'kv_heads_num'.*did you mean 'kv_head_num'"):
        _native.open_model_folder(str(path))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("head_num = 4", "head_num = four", "head_num is 'four', which is not an integer"),
        ("head_num = 4", "head_num = 99999999999999999999", "which is not an integer"),
        ("head_num = 4", "head_num = 9223372036854775807", "head_num is 9223372036854775807"),
        ("num_layer = 2", "num_layer = 2\nnum_layer = 3", "already given on line"),
        ("num_layer = 2", "num_layers = 2", "has no key 'num_layer'; did you mean 'num_layers'"),
        ("kv_head_num = 2", "kv_head_num = 3", "not a multiple of num_kv_heads 3"),
        ("end_id = 2", "end_id = 71", "outside the vocabulary of 71"),
        ("tensor_para_size = 1", "tensor_para_size = 3", "cannot be split on 3 ranks"),
        ("[llama]", "[lama]", "neither a section"),
        ("weight_data_type = fp16", "weight_data_type = int4", "allowed are fp32, fp16, bf16"),
    ],
)
def test_broken_ini_is_a_weight_error(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    path = llama_folder(tmp_path)
    ini = path / "config.ini"
    text = ini.read_text()
    assert before in text
    ini.write_text(text.replace(before, after))
    with pytest.raises(WeightError, match=message.replace("[", r"\[")):
        _native.open_model_folder(str(path))


def test_missing_folder_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no model folder"):
        _native.open_model_folder(str(tmp_path / "nowhere"))
    with pytest.raises(WeightError, match=r"neither manifest\.json nor config\.ini"):
        _native.open_model_folder(str(tmp_path))


def test_enormous_manifest_is_an_error_and_no_allocation(tmp_path: Path) -> None:
    path = llama_folder(tmp_path)
    (path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(WeightError, match="nested deeper than 32"):
        _native.open_model_folder(str(path))
    with (path / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no space
    with pytest.raises(WeightError, match="1,099,511,627,776 bytes; at most 67,108,864"):
        _native.open_model_folder(str(path))


def test_read_json_gives_python_values(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    value = {"z": [1, -2.5, True, False, None, "é😀"], "a": {"deep": 2**63 - 1}, "": []}
    path.write_text(json.dumps(value))
    read = _native.read_json(str(path))
    assert read == value
    assert list(read) == ["z", "a", ""]
    assert isinstance(read["z"][0], int)


def test_read_json_refuses_what_python_lets_pass(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ('{"a": 1, "a": 2}', "NaN", "[1] x", '"\\ud800"'):
        path.write_text(text)
        with pytest.raises(WeightError, match=r"x\.json:1:"):
            _native.read_json(str(path))


def test_read_ini_gives_lower_case_names(tmp_path: Path) -> None:
    path = tmp_path / "x.ini"
    path.write_text("[Llama]\nHead_Num = 4 # heads\nname : a b\n")
    assert _native.read_ini(str(path)) == {"llama": {"head_num": "4", "name": "a b"}}


def test_policy_round_trip_and_rule_that_matches_nothing(tmp_path: Path) -> None:
    config = _native.open_model_folder(str(llama_folder(tmp_path))).config
    document = {
        "schema": "flexq-ft/policy/1",
        "name": "mine",
        "default": 6,
        "rules": [
            {"layers": "*", "linear": "down", "act_bits": 8},
            {"layers": [1], "linear": "qkv", "act_bits": 16},
        ],
    }
    policy = _native.Policy.from_dict(document)
    assert policy.to_dict() == document
    assert [policy.act_bits(layer, "qkv") for layer in (0, 1)] == [6, 16]
    policy.check(config)
    document["rules"] = [{"layers": "2-5", "linear": "qkv", "act_bits": 8}]
    with pytest.raises(ConfigError, match="rule 1 of policy mine matches nothing"):
        _native.Policy.from_dict(document).check(config)
    with pytest.raises(ConfigError, match=r"policy\.defualt is an unknown key"):
        _native.Policy.from_dict(document | {"defualt": 6})
