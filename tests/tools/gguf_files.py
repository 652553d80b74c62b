"""Small GGUF files of the LLaMA architecture, made as llama.cpp's converter makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open

from tests.tools.checkpoints import TEXT

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleave(w: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's row order of q and k: row 2j of a head is row j, row 2j + 1 is row j + half."""
    head_dim = w.shape[0] // heads
    order = [h * head_dim + j + half for h in range(heads) for j in range(head_dim // 2)
             for half in (0, head_dim // 2)]  # fmt: skip
    return w[order]


def write_gguf(
    path: Path,
    hf_dir: Path,
    config: dict[str, Any],
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    extra: dict[str, Any] | None = None,
    tokenizer: Any = None,
    pre: str = "smollm",
) -> Path:
    """The model of hf_dir (fp32 safetensors) with its matrices stored as `kind`.

    extra: further metadata; floats and strings. tokenizer: a byte-level `tokenizers.Tokenizer`.
    """
    writer = gguf.GGUFWriter(path, "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    for key, value in (extra or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(key, value)
    if tokenizer is not None:
        add_tokenizer(writer, tokenizer, pre)
    for file in sorted(hf_dir.glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118, not a dict
                values = tensors.get_tensor(name).astype(np.float32)
                if ".q_proj." in name or ".k_proj." in name:
                    values = interleave(values, heads if ".q_proj." in name else kv_heads)
                _add(writer, _gguf_name(name), values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, pre: str) -> None:
    import json

    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    special = {token["content"] for token in content["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in special else normal for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def _gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def _add(
    writer: gguf.GGUFWriter,
    name: str,
    values: np.ndarray[Any, Any],
    kind: gguf.GGMLQuantizationType,
) -> None:
    if values.ndim == 1 or kind is gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    elif kind is gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


SAMPLES = [*TEXT.split("\n"), TEXT, "a  12 1998", "x=3.4\n\n  12", "½ ١٢", "<s>hi</s> ", ""]
