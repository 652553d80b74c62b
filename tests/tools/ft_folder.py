"""Write a float checkpoint byte for byte as FasterTransformer's own scripts do.

Their rules: headerless little-endian C-order arrays; linear weights transposed to [in, out];
column-parallel tensors cut on the last axis, row-parallel ones on the first; embedding and head
[V, H] as they are. No manifest, and only the INI keys that those scripts write.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Style = Literal["llama", "llama2", "opt"]

DTYPES: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


class _Writer:
    def __init__(self, folder: Path, dtype: str, tp: int) -> None:
        self.folder = folder
        self.dtype = DTYPES[dtype]
        self.tp = tp

    def whole(self, name: str, values: Array) -> None:
        array = np.ascontiguousarray(values.astype(np.float32).astype(self.dtype))
        (self.folder / f"model.{name}.bin").write_bytes(array.tobytes())

    def split(self, name: str, values: Array, *, axis: int) -> None:
        for rank, part in enumerate(np.split(values, self.tp, axis=axis)):
            self.whole(f"{name}.{rank}", part)


def _qkv_v1(q: Array, k: Array, v: Array) -> Array:
    """[3, H] or [H, 3, H] whose last axis is cut: FT's scripts for LLaMA v1 and OPT."""
    stacked = [np.ascontiguousarray(part.T) for part in (q, k, v)]
    return np.stack(stacked, axis=-2)


def _write_llama_layer(writer: _Writer, name: str, hf: Mapping[str, Array], source: str) -> None:
    q, k, v = (hf[f"{source}.self_attn.{part}_proj.weight"] for part in "qkv")
    for rank in range(writer.tp):
        rows = [np.split(part, writer.tp, axis=0)[rank] for part in (q, k, v)]
        writer.whole(f"{name}.attention.query_key_value.weight.{rank}", np.concatenate(rows).T)
    writer.split(
        f"{name}.attention.dense.weight", hf[f"{source}.self_attn.o_proj.weight"].T, axis=0
    )
    for part in ("gate_proj", "up_proj"):
        writer.split(f"{name}.mlp.{part}.weight", hf[f"{source}.mlp.{part}.weight"].T, axis=-1)
    writer.split(f"{name}.mlp.down_proj.weight", hf[f"{source}.mlp.down_proj.weight"].T, axis=0)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        writer.whole(f"{name}.{norm}.weight", hf[f"{source}.{norm}.weight"])


def _write_llama(writer: _Writer, hf: Mapping[str, Array], config: Mapping[str, Any]) -> None:
    writer.whole("wte.weight", hf["model.embed_tokens.weight"])
    writer.whole("final_layernorm.weight", hf["model.norm.weight"])
    writer.whole("lm_head.weight", hf["lm_head.weight"])
    for layer in range(config["num_hidden_layers"]):
        _write_llama_layer(writer, f"layers.{layer}", hf, f"model.layers.{layer}")


def _write_opt_layer(writer: _Writer, name: str, hf: Mapping[str, Array], source: str) -> None:
    for what in ("weight", "bias"):
        q, k, v = (hf[f"{source}.self_attn.{part}_proj.{what}"] for part in "qkv")
        writer.split(f"{name}.attention.query_key_value.{what}", _qkv_v1(q, k, v), axis=-1)
        fc1 = hf[f"{source}.fc1.{what}"]
        writer.split(f"{name}.mlp.dense_h_to_4h.{what}", fc1.T, axis=-1)
        for ours, theirs in (
            ("input_layernorm", "self_attn_layer_norm"),
            ("post_attention_layernorm", "final_layer_norm"),
        ):
            writer.whole(f"{name}.{ours}.{what}", hf[f"{source}.{theirs}.{what}"])
    for ours, theirs in (("attention.dense", "self_attn.out_proj"), ("mlp.dense_4h_to_h", "fc2")):
        writer.split(f"{name}.{ours}.weight", hf[f"{source}.{theirs}.weight"].T, axis=0)
        writer.whole(f"{name}.{ours}.bias", hf[f"{source}.{theirs}.bias"])


def _write_opt(writer: _Writer, hf: Mapping[str, Array], config: Mapping[str, Any]) -> None:
    embedding = hf["model.decoder.embed_tokens.weight"]
    writer.whole("wte", embedding)
    writer.whole("lm_head.weight", embedding)  # a second full file, although tied
    writer.whole("wpe", hf["model.decoder.embed_positions.weight"][2:])
    for what in ("weight", "bias"):
        writer.whole(f"final_layernorm.{what}", hf[f"model.decoder.final_layer_norm.{what}"])
    for layer in range(config["num_hidden_layers"]):
        _write_opt_layer(writer, f"layers.{layer}", hf, f"model.decoder.layers.{layer}")


def _eos(config: Mapping[str, Any]) -> int:
    eos = config["eos_token_id"]
    return int(eos[0] if isinstance(eos, list) else eos)


def _llama_keys(config: Mapping[str, Any], style: Style, dtype: str, tp: int) -> dict[str, str]:
    heads = config["num_attention_heads"]
    keys: dict[str, Any] = {
        "model_name": "llama",
        "head_num": heads,
        "size_per_head": config["hidden_size"] // heads,
        "inter_size": config["intermediate_size"],
        "num_layer": config["num_hidden_layers"],
        "rotary_embedding": config["hidden_size"] // heads,
        "layernorm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "start_id": config["bos_token_id"],
        "end_id": _eos(config),
        "weight_data_type": dtype,
    }
    if style == "llama2":
        keys["kv_head_num"] = config["num_key_value_heads"]
        keys["rope_scaling_factor"] = 1.0
        keys["rope_base"] = 10000
        keys["tensor_para_size"] = tp
    return {key: str(value) for key, value in keys.items()}


def _opt_keys(config: Mapping[str, Any], dtype: str) -> dict[str, str]:
    heads = config["num_attention_heads"]
    keys: dict[str, Any] = {
        "model_name": "opt",
        "head_num": heads,
        "size_per_head": config["hidden_size"] // heads,
        "inter_size": config["ffn_dim"],
        "max_pos_seq_len": config["max_position_embeddings"],
        "num_layer": config["num_hidden_layers"],
        "layernorm_eps": "1e-5",
        "layernorm_type": "pre_layernorm",
        "activation_type": "Relu",
        "has_post_decoder_layernorm": "1",
        "vocab_size": config["vocab_size"],
        "start_id": config["bos_token_id"],
        "end_id": _eos(config),
        "weight_data_type": dtype,
        "int8": "False",
    }
    return {key: str(value) for key, value in keys.items()}


def write_ft_folder(
    out: Path,
    tensors: Mapping[str, Array],
    config: Mapping[str, Any],
    *,
    style: Style,
    dtype: str = "fp16",
    tp: int = 1,
) -> Path:
    """Write `out/<tp>-gpu` and return it.

    tensors: Hugging Face names and [out, in] weights. config: the keys of its config.json. style
    `llama` is for as many KV heads as heads, and its INI says nothing of ranks; `llama2` is the
    script with kv_head_num.
    """
    folder = out / f"{tp}-gpu"
    folder.mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder, dtype, tp)
    ini = configparser.ConfigParser()
    if style == "opt":
        _write_opt(writer, tensors, config)
        ini["gpt"] = _opt_keys(config, dtype)
    else:
        _write_llama(writer, tensors, config)
        ini["llama"] = _llama_keys(config, style, dtype, tp)
    with (folder / "config.ini").open("w") as file:
        ini.write(file)
    return folder
