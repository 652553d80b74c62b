"""Small random Hugging Face models of every kind the runtime knows, and their float model folders.

The folders are FasterTransformer's (ft_folder.py) with the keys and files that FasterTransformer
has no words for: KV heads, rope, biases, tied heads.
"""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
import transformers

from tests.tools.checkpoints import random_model, tensors_of
from tests.tools.ft_folder import DTYPES, write_ft_folder

VOCAB = 131
POSITIONS = 96

_LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

# name -> (architecture, what differs from _LLAMA)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_mha": ("Llama", {}),
    "llama_gqa": ("Llama", {"num_key_value_heads": 2}),
    "llama_mqa_tied": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama_rope_theta": (
        "Llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    ),
    "llama_rope_linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}},
    ),
    "llama_rope_llama3": ("Llama", {"rope_parameters": _LLAMA3_ROPE}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"num_key_value_heads": 3, "sliding_window": None}),
    "qwen2_tied": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "opt": ("OPT", {}),
}


def _config(architecture: str, changes: dict[str, Any]) -> Any:
    if architecture == "OPT":
        return transformers.OPTConfig(
            vocab_size=VOCAB,
            hidden_size=72,
            ffn_dim=100,
            num_hidden_layers=3,
            num_attention_heads=6,
            max_position_embeddings=POSITIONS,
            word_embed_proj_dim=72,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            do_layer_norm_before=True,
            activation_function="relu",
            dropout=0.0,
            **changes,
        )
    kind = getattr(transformers, f"{architecture}Config")
    return kind(**{**_LLAMA, **changes})


def make_model(kind: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random float32 model in eval mode."""
    architecture, own = KINDS[kind]
    return random_model(_config(architecture, {**own, **changes}), seed=seed)


def _rope_keys(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    keys: dict[str, Any] = {
        "rope_theta": rope["rope_theta"],
        "rope_scaling_type": rope["rope_type"],
    }
    if rope["rope_type"] != "default":
        keys["rope_scaling_factor"] = rope["factor"]
    if rope["rope_type"] == "llama3":
        keys["rope_scaling_low_freq_factor"] = rope["low_freq_factor"]
        keys["rope_scaling_high_freq_factor"] = rope["high_freq_factor"]
        keys["rope_scaling_original_max_position_embeddings"] = rope[
            "original_max_position_embeddings"
        ]
    return keys


def _add_biases(folder: Path, tensors: dict[str, Any], layers: int, dtype: str) -> dict[str, int]:
    """Writes the bias files that a LLaMA-like model has; returns the INI keys that say so."""

    def write(name: str, values: Any) -> None:
        (folder / name).write_bytes(np.ascontiguousarray(values.astype(DTYPES[dtype])).tobytes())

    found = {"qkv_bias": 0, "dense_bias": 0, "ffn_bias": 0}
    for layer in range(layers):
        hf, ft = f"model.layers.{layer}", f"model.layers.{layer}"
        if f"{hf}.self_attn.q_proj.bias" in tensors:
            found["qkv_bias"] = 1
            parts = [tensors[f"{hf}.self_attn.{part}_proj.bias"] for part in "qkv"]
            write(f"{ft}.attention.query_key_value.bias.0.bin", np.concatenate(parts))
        if f"{hf}.self_attn.o_proj.bias" in tensors:
            found["dense_bias"] = 1
            write(f"{ft}.attention.dense.bias.bin", tensors[f"{hf}.self_attn.o_proj.bias"])
        if f"{hf}.mlp.gate_proj.bias" in tensors:
            found["ffn_bias"] = 1
            for part in ("gate_proj", "up_proj"):
                write(f"{ft}.mlp.{part}.bias.0.bin", tensors[f"{hf}.mlp.{part}.bias"])
            write(f"{ft}.mlp.down_proj.bias.bin", tensors[f"{hf}.mlp.down_proj.bias"])
    return found


def write_folder(
    model: Any, out: Path, *, dtype: str = "fp32", ini: dict[str, Any] | None = None
) -> Path:
    """`out/1-gpu` with the model's weights; `ini` adds or changes keys of its config.ini."""
    tensors = tensors_of(model)
    config = model.config.to_dict()
    if config["model_type"] == "opt":
        folder = write_ft_folder(out, tensors, config, style="opt", dtype=dtype)
        keys: dict[str, Any] = {}
    else:
        folder = write_ft_folder(out, tensors, config, style="llama2", dtype=dtype)
        keys = {
            "max_pos_seq_len": config["max_position_embeddings"],
            "tie_word_embeddings": int(config["tie_word_embeddings"]),
            **_rope_keys(model.config),
            **_add_biases(folder, tensors, config["num_hidden_layers"], dtype),
        }
        if config["tie_word_embeddings"]:
            (folder / "model.lm_head.weight.bin").unlink()
    path = folder / "config.ini"
    parser = configparser.ConfigParser()
    parser.read(path)
    section = parser[parser.sections()[0]]
    for key, value in {**keys, **(ini or {})}.items():
        section[key] = str(value)
    if keys:
        section.pop("rope_base", None)
    with path.open("w") as file:
        parser.write(file)
    return folder


def rounded(model: Any, dtype: str) -> Any:
    """The model with its weights rounded to a dtype, still float32: what a folder of it holds."""
    kinds = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32}
    with torch.no_grad():
        for parameter in model.parameters():
            values = parameter.numpy().astype(kinds[dtype]).astype(np.float32)
            parameter.copy_(torch.from_numpy(values))
    return model


def logits_of(model: Any, ids: list[int]) -> Any:
    """[tokens, vocab] float32, as Hugging Face computes them."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def greedy_tokens(model: Any, prompt: list[int], steps: int) -> list[int]:
    """The argmax continuation; nothing stops it."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(logits_of(model, ids)[-1].argmax()))
    return ids[len(prompt) :]
