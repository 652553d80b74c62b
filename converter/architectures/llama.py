"""LLaMA and the models wired alike: Mistral, Qwen2 (query/key/value biases)."""

from __future__ import annotations

from flexq_ft.converter.architectures.spec import Architecture, Split, TensorSpec

__all__ = ["LLAMA"]

_HF = "model.layers.{i}."
_FT = "model.layers.{i}."
_QKV = _FT + "attention.query_key_value"


def _qkv(name: str, dim: str) -> tuple[TensorSpec, TensorSpec]:
    return (
        TensorSpec(
            hf=f"{_HF}self_attn.{name}_proj.weight",
            ft=_QKV + ".weight",
            shape=(dim, "hidden"),
            split=Split.COLUMN,
            linear="qkv",
        ),
        TensorSpec(
            hf=f"{_HF}self_attn.{name}_proj.bias",
            ft=_QKV + ".bias",
            shape=(dim,),
            split=Split.COLUMN,
            when=lambda config: config.qkv_bias,
        ),
    )


def _gate_or_up(name: str) -> tuple[TensorSpec, TensorSpec]:
    return (
        TensorSpec(
            hf=f"{_HF}mlp.{name}_proj.weight",
            ft=f"{_FT}mlp.{name}_proj.weight",
            shape=("inter", "hidden"),
            split=Split.COLUMN,
            linear="gate_up",
        ),
        TensorSpec(
            hf=f"{_HF}mlp.{name}_proj.bias",
            ft=f"{_FT}mlp.{name}_proj.bias",
            shape=("inter",),
            split=Split.COLUMN,
            when=lambda config: config.ffn_bias,
        ),
    )


def _norm(name: str) -> TensorSpec:
    return TensorSpec(hf=f"{_HF}{name}.weight", ft=f"{_FT}{name}.weight", shape=("hidden",))


LLAMA = Architecture(
    wiring="llama",
    ini_section="llama",
    root="model.",
    tensors=(
        TensorSpec(
            hf="model.embed_tokens.weight", ft="model.wte.weight", shape=("vocab", "hidden")
        ),
        TensorSpec(hf="model.norm.weight", ft="model.final_layernorm.weight", shape=("hidden",)),
        TensorSpec(
            hf="lm_head.weight",
            ft="model.lm_head.weight",
            shape=("vocab", "hidden"),
            when=lambda config: not config.tie_word_embeddings,
        ),
        # A tied checkpoint may hold the head's copy (tied_head.py).
        TensorSpec(hf="lm_head.weight", when=lambda config: config.tie_word_embeddings),
        TensorSpec(hf=_HF + "self_attn.rotary_emb.inv_freq"),
        _norm("input_layernorm"),
        *_qkv("q", "q"),
        *_qkv("k", "kv"),
        *_qkv("v", "kv"),
        TensorSpec(
            hf=_HF + "self_attn.o_proj.weight",
            ft=_FT + "attention.dense.weight",
            shape=("hidden", "q"),
            split=Split.ROW,
            linear="o",
        ),
        TensorSpec(
            hf=_HF + "self_attn.o_proj.bias",
            ft=_FT + "attention.dense.bias",
            shape=("hidden",),
            when=lambda config: config.dense_bias,
        ),
        _norm("post_attention_layernorm"),
        *_gate_or_up("gate"),
        *_gate_or_up("up"),
        TensorSpec(
            hf=_HF + "mlp.down_proj.weight",
            ft=_FT + "mlp.down_proj.weight",
            shape=("hidden", "inter"),
            split=Split.ROW,
            linear="down",
        ),
        TensorSpec(
            hf=_HF + "mlp.down_proj.bias",
            ft=_FT + "mlp.down_proj.bias",
            shape=("hidden",),
            when=lambda config: config.ffn_bias,
        ),
    ),
)
