"""A GGUF file's metadata as a Hugging Face config, so that both are checked by the same code."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from flexq_ft.converter.dtypes import FloatArray
from flexq_ft.errors import WeightError

__all__ = ["hf_config_of"]

# Llama 3.1 and later: the file holds the factor of each frequency, not the rule that made them.
_LLAMA3_RULE = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def hf_config_of(
    metadata: Mapping[str, Any],
    *,
    name: str,
    tensors: Collection[str],
    rope_factors: FloatArray | None,
) -> dict[str, Any]:
    """config.json's keys. tensors: Hugging Face names. Raises WeightError for what is missing,
    unsupported or cannot be derived surely."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise WeightError(
            f"GGUF architecture {architecture!r} of {name} is not supported",
            hint="supported in GGUF: llama; other models as Hugging Face folders",
        )

    def need(key: str) -> Any:
        if f"llama.{key}" not in metadata:
            raise WeightError(f"{name} has no metadata key llama.{key}", hint="download it again")
        return metadata[f"llama.{key}"]

    if metadata.get("llama.expert_count"):
        raise WeightError(f"{name} is a mixture of experts, which is not supported")
    heads, hidden = int(need("attention.head_count")), int(need("embedding_length"))
    head_dim = int(metadata.get("llama.attention.key_length", hidden // heads))
    rotated = int(metadata.get("llama.rope.dimension_count", head_dim))
    if rotated != head_dim:
        raise WeightError(f"{name} rotates {rotated} of {head_dim} dimensions: not supported")
    tokens = metadata.get("tokenizer.ggml.tokens")
    theta = _shortest(metadata.get("llama.rope.freq_base", 10000.0))
    return {
        "model_type": "llama",
        "vocab_size": metadata.get("llama.vocab_size", len(tokens) if tokens else None),
        "hidden_size": hidden,
        "num_hidden_layers": need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": need("feed_forward_length"),
        "max_position_embeddings": need("context_length"),
        "rms_norm_eps": _shortest(need("attention.layer_norm_rms_epsilon")),
        "rope_parameters": _rope(metadata, name, theta, head_dim, rope_factors),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in tensors,
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _eos(metadata),
    }


def _eos(metadata: Mapping[str, Any]) -> list[int] | None:
    """End of text first, then end of turn where it is another token."""
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    found = [metadata[key] for key in keys if metadata.get(key) is not None]
    return found or None


def _rope(
    metadata: Mapping[str, Any],
    name: str,
    theta: float,
    head_dim: int,
    factors: FloatArray | None,
) -> dict[str, Any]:
    kind = metadata.get("llama.rope.scaling.type", "none")
    if factors is not None:
        return _llama3(name, theta, head_dim, factors)
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if kind == "linear":
        factor = _shortest(metadata.get("llama.rope.scaling.factor", 1.0))
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    raise WeightError(
        f"rope type {kind!r} of {name} is not supported", hint="supported: none, linear, llama3"
    )


def _llama3(name: str, theta: float, head_dim: int, factors: FloatArray) -> dict[str, Any]:
    """The rule behind stored factors, accepted only if it gives every one of them again."""
    factor = _shortest(factors.max())
    low, high = _LLAMA3_RULE["low_freq_factor"], _LLAMA3_RULE["high_freq_factor"]
    turns = (
        _LLAMA3_RULE["original_max_position_embeddings"]
        / (2 * math.pi)
        * theta ** (-np.arange(0, head_dim, 2) / head_dim)
    )
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise WeightError(
            f"the rope factors of {name} follow no rule that is known here",
            hint="convert the Hugging Face checkpoint, whose config.json names the rule",
        )
    return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **_LLAMA3_RULE}


def _shortest(value: Any) -> float:
    """Metadata floats are 32 bits: 9.99999974e-06 was 1e-05 before it was stored."""
    return float(str(np.float32(value)))
