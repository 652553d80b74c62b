"""config.ini: FasterTransformer's keys, and ours beside them."""

from __future__ import annotations

from flexq_ft.converter.model_config import ModelConfig, RopeConfig

__all__ = ["render_ini"]

_FT_ACTIVATIONS = {"relu": "Relu", "gelu": "Gelu", "silu": "Silu"}


def render_ini(
    config: ModelConfig, *, section: str, dtype: str, int8_mode: int, tp: int, group_size: int
) -> str:
    values: dict[str, object] = {
        "model_name": config.name,
        "head_num": config.num_heads,
        "size_per_head": config.head_dim,
        "inter_size": config.inter_size,
        "max_pos_seq_len": config.max_positions,
        "num_layer": config.num_layers,
        "layernorm_eps": config.norm_eps,
        "vocab_size": config.vocab_size,
        "start_id": config.bos_id,
        "end_id": config.eos_ids[0] if config.eos_ids else -1,
        "weight_data_type": dtype,
    }
    values |= _rope_keys(config) if config.rope else _gpt_keys(config)
    values |= {
        "kv_head_num": config.num_kv_heads,
        "end_ids": ",".join(str(i) for i in config.eos_ids),
        "tie_word_embeddings": int(config.tie_word_embeddings),
        "qkv_bias": int(config.qkv_bias),
        "dense_bias": int(config.dense_bias),
        "ffn_bias": int(config.ffn_bias),
        "sliding_window": config.sliding_window or 0,
        "int8_mode": int8_mode,
        "tensor_para_size": tp,
        "group_size": group_size,
    }
    lines = [f"[{section}]", *(f"{key} = {value}".rstrip() for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _gpt_keys(config: ModelConfig) -> dict[str, object]:
    return {
        "layernorm_type": "pre_layernorm",
        "activation_type": _FT_ACTIVATIONS[config.activation],
        "has_post_decoder_layernorm": 1,
    }


def _rope_keys(config: ModelConfig) -> dict[str, object]:
    rope = config.rope
    assert isinstance(rope, RopeConfig)
    return {
        "rotary_embedding": config.head_dim,
        "rope_theta": rope.theta,
        "rope_scaling_type": rope.type,
        "rope_scaling_factor": rope.factor,
        "rope_scaling_low_freq_factor": rope.low_freq_factor,
        "rope_scaling_high_freq_factor": rope.high_freq_factor,
        "rope_scaling_original_max_position_embeddings": rope.original_max_positions,
    }
