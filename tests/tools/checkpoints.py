"""Small random Hugging Face checkpoints for tests, and a large one written without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TEXT = """A weight file that is too short must not be loaded. When a reader meets a number that it
does not expect, it stops, says which file and which number, and names a way out. A model is made
of many small tables; each is cut for the ranks that share it, rounded once, and written beside the
others. In 1998 two of 3,457 tables were lost, and nobody noticed for 12 days: the program went on
with whatever was in memory. It's better to fail early, isn't it? We'd say so. Über-long lines,
naïve readers and the occasional 日本語 word belong in a test too, as do    several   spaces,
tabs\tand line ends.

    def add(a, b):
        return a + b  # 40 + 2 == 42
"""

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def make_checkpoint(
    folder: Path,
    *,
    family: str = "llama",
    hidden: int = 256,
    heads: int = 4,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    inter: int = 384,
    layers: int = 2,
    vocab: int = 320,
    positions: int = 256,
    tied: bool = False,
    rope: str = "default",
    bias: bool = False,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    tokenizer: bool = True,
    seed: int = 0,
) -> Path:
    """Saves a random model of llama, qwen2, mistral or opt with save_pretrained; returns folder."""
    import torch

    config = _config(
        family,
        hidden=hidden,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        inter=inter,
        layers=layers,
        vocab=vocab,
        positions=positions,
        tied=tied,
        rope=rope,
        bias=bias,
    )
    model = random_model(config, seed=seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        save_tokenizer(folder, vocab=vocab)
    return folder


def random_model(config: Any, *, seed: int = 0) -> Any:
    """A float32 model in eval mode; weights are so wide that logits differ clearly.

    Embeddings are as small as what a layer adds: a tied head would else repeat the last token.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            else:
                parameter.uniform_(0.7, 1.3)
    return model


def random_tensors(family: str, config: dict[str, Any], *, seed: int = 0) -> dict[str, Array]:
    """The weights of such a model, by Hugging Face's names; config: keys of a config.json."""
    from transformers import AutoConfig

    keys = {key: value for key, value in config.items() if key != "model_type"}
    return tensors_of(random_model(AutoConfig.for_model(family, **keys), seed=seed))


def tensors_of(model: Any) -> dict[str, Array]:
    """A float32 model's weights as NumPy arrays."""
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def _config(family: str, *, kv_heads: int, head_dim: int | None, rope: str, **size: Any) -> Any:
    import transformers

    common = {
        "vocab_size": size["vocab"],
        "hidden_size": size["hidden"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "max_position_embeddings": size["positions"],
        "tie_word_embeddings": size["tied"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    if family == "opt":
        return transformers.OPTConfig(
            ffn_dim=size["inter"], word_embed_proj_dim=size["hidden"], dropout=0.0, **common
        )
    gated = {
        "intermediate_size": size["inter"],
        "num_key_value_heads": kv_heads,
        "rope_parameters": dict(ROPES[rope]),
    }
    if head_dim is not None:
        gated["head_dim"] = head_dim
    if family == "llama":
        return transformers.LlamaConfig(
            attention_bias=size["bias"], mlp_bias=size["bias"], **common, **gated
        )
    if family == "mistral":
        return transformers.MistralConfig(sliding_window=None, **common, **gated)
    return transformers.Qwen2Config(**common, **gated)


def train_tokenizer(*, vocab: int) -> Any:
    """A byte-level BPE of at most `vocab` tokens: <s>, </s>, <pad>, bytes, merges of TEXT."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def save_tokenizer(folder: Path, *, vocab: int) -> None:
    train_tokenizer(vocab=vocab).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "chat_template": "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>"
        "{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


TINYLLAMA = {
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}


def write_large_llama(folder: Path, *, shard_bytes: int = 1_000_000_000, **size: int) -> Path:
    """A LLaMA of TinyLlama's shape (1.1 billion weights) in bf16, in shards; keywords override it.

    Needs neither torch nor much memory: rows are drawn from a pool of random values.
    """
    shape = TINYLLAMA | size
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        **shape,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    used = 0
    for name, dims in _llama_tensors(shape):
        nbytes = 2 * int(np.prod(dims))
        if used and used + nbytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append((name, dims))
        used += nbytes
    pool = _bf16_pool()
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, tensors, pool)
        weight_map |= dict.fromkeys((name for name, _ in tensors), file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _llama_tensors(shape: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inter = shape["hidden_size"], shape["intermediate_size"]
    kv = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    yield "model.embed_tokens.weight", (shape["vocab_size"], hidden)
    for layer in range(shape["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (hidden,)
        yield at + "self_attn.q_proj.weight", (hidden, hidden)
        yield at + "self_attn.k_proj.weight", (kv, hidden)
        yield at + "self_attn.v_proj.weight", (kv, hidden)
        yield at + "self_attn.o_proj.weight", (hidden, hidden)
        yield at + "post_attention_layernorm.weight", (hidden,)
        yield at + "mlp.gate_proj.weight", (inter, hidden)
        yield at + "mlp.up_proj.weight", (inter, hidden)
        yield at + "mlp.down_proj.weight", (hidden, inter)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape["vocab_size"], hidden)


def _bf16_pool() -> np.ndarray[Any, np.dtype[np.uint16]]:
    values = np.random.default_rng(0).standard_normal(3_000_017, dtype=np.float32) * 0.02
    upper: np.ndarray[Any, np.dtype[np.uint16]] = (values.view(np.uint32) >> 16).astype(np.uint16)
    return upper


def _write_shard(
    path: Path,
    tensors: list[tuple[str, tuple[int, ...]]],
    pool: np.ndarray[Any, np.dtype[np.uint16]],
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dims in tensors:
        nbytes = 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, (_, dims) in enumerate(tensors):
            left = int(np.prod(dims))
            start = number * 7919 % len(pool)
            while left:
                part = pool[start : start + left]
                file.write(part.tobytes())
                left -= len(part)
                start = 0
