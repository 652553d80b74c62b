"""OPT, pre-LayerNorm: learned positions, biases everywhere, tied head."""

from __future__ import annotations

from flexq_ft.converter.architectures.spec import Architecture, Split, TensorSpec

__all__ = ["OPT"]

_HF = "model.decoder.layers.{i}."
_FT = "model.layers.{i}."
_QKV = _FT + "attention.query_key_value"


def _norm(hf: str, ft: str) -> tuple[TensorSpec, TensorSpec]:
    return (
        TensorSpec(hf=hf + ".weight", ft=ft + ".weight", shape=("hidden",)),
        TensorSpec(hf=hf + ".bias", ft=ft + ".bias", shape=("hidden",)),
    )


def _column(hf: str, ft: str, dim: str, linear: str) -> tuple[TensorSpec, TensorSpec]:
    return (
        TensorSpec(
            hf=hf + ".weight",
            ft=ft + ".weight",
            shape=(dim, "hidden"),
            split=Split.COLUMN,
            linear=linear,
        ),
        TensorSpec(hf=hf + ".bias", ft=ft + ".bias", shape=(dim,), split=Split.COLUMN),
    )


def _row(hf: str, ft: str, dim: str, linear: str) -> tuple[TensorSpec, TensorSpec]:
    return (
        TensorSpec(
            hf=hf + ".weight",
            ft=ft + ".weight",
            shape=("hidden", dim),
            split=Split.ROW,
            linear=linear,
        ),
        TensorSpec(hf=hf + ".bias", ft=ft + ".bias", shape=("hidden",)),
    )


OPT = Architecture(
    wiring="opt",
    ini_section="gpt",
    root="model.",
    tensors=(
        TensorSpec(
            hf="model.decoder.embed_tokens.weight", ft="model.wte", shape=("vocab", "hidden")
        ),
        # Hugging Face's table starts with two rows that no position uses (its offset of 2).
        TensorSpec(
            hf="model.decoder.embed_positions.weight",
            ft="model.wpe",
            shape=("positions", "hidden"),
            skip_rows=2,
        ),
        *_norm("model.decoder.final_layer_norm", "model.final_layernorm"),
        TensorSpec(
            hf="lm_head.weight",
            ft="model.lm_head.weight",
            shape=("vocab", "hidden"),
            when=lambda config: not config.tie_word_embeddings,
        ),
        TensorSpec(hf="lm_head.weight", when=lambda config: config.tie_word_embeddings),
        *_norm(_HF + "self_attn_layer_norm", _FT + "input_layernorm"),
        *_column(_HF + "self_attn.q_proj", _QKV, "q", "qkv"),
        *_column(_HF + "self_attn.k_proj", _QKV, "kv", "qkv"),
        *_column(_HF + "self_attn.v_proj", _QKV, "kv", "qkv"),
        *_row(_HF + "self_attn.out_proj", _FT + "attention.dense", "q", "o"),
        *_norm(_HF + "final_layer_norm", _FT + "post_attention_layernorm"),
        *_column(_HF + "fc1", _FT + "mlp.dense_h_to_4h", "inter", "fc1"),
        *_row(_HF + "fc2", _FT + "mlp.dense_4h_to_h", "inter", "fc2"),
    ),
)
