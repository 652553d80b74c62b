"""What a step must do at least: the bytes that decoding reads, the operations of a prefill.

Against the measured read bandwidth these say how much of the machine a time has used. Nothing is
credited twice: weights, scales and the cache count once a step, activations not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexq_ft.errors import WeightError

DTYPE_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
_GROUP = 128  # of w6ax, along K
_BIAS_BYTES = 4  # the runtime adds fp32 biases to fp32 sums
_HEAD_SCHEMES = {"w8": "w8a16", "w6": "w6ax"}  # that store a weight alike
SUSPECT_SHARE = 1.02  # more than the machine can: something is measured wrongly


@dataclass(frozen=True)
class Linear:
    """y [n] = W [n, k] x + bias, on one layer."""

    name: str
    n: int
    k: int
    has_bias: bool


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """The sizes of a decoder-only model. positions: rows of a learned table, 0 for rope."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inter: int
    max_positions: int
    positions: int
    is_gated: bool
    is_tied: bool
    has_norm_bias: bool
    qkv_bias: bool
    dense_bias: bool
    ffn_bias: bool

    @classmethod
    def of_config(cls, config: Any) -> ModelSizes:
        """Of a `_native.ModelConfig`."""
        return cls(
            vocab=config.vocab_size,
            hidden=config.hidden_size,
            layers=config.num_layers,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            inter=config.inter_size,
            max_positions=config.max_positions,
            positions=config.max_positions if config.rope is None else 0,
            is_gated=config.gated_ffn,
            is_tied=config.tie_word_embeddings,
            has_norm_bias=config.norm == "layer",
            qkv_bias=config.qkv_bias,
            dense_bias=config.dense_bias,
            ffn_bias=config.ffn_bias,
        )

    @classmethod
    def of_ini(cls, path: Path) -> ModelSizes:
        """Of a shape's INI, which is written by the same hand as a folder's config.ini."""
        from flexq_ft import _native

        sections = _native.read_ini(str(path))
        if len(sections) != 1 or next(iter(sections)) not in ("llama", "gpt"):
            raise WeightError(f"{path} has not exactly one of the sections [llama] and [gpt].")
        name, values = next(iter(sections.items()))
        heads, head_dim = int(values["head_num"]), int(values["size_per_head"])
        positions = int(values["max_pos_seq_len"])
        is_llama = name == "llama"
        return cls(
            vocab=int(values["vocab_size"]),
            hidden=heads * head_dim,
            layers=int(values["num_layer"]),
            heads=heads,
            kv_heads=int(values["kv_head_num"]),
            head_dim=head_dim,
            inter=int(values["inter_size"]),
            max_positions=positions,
            positions=0 if is_llama else positions,
            is_gated=is_llama,
            is_tied=values["tie_word_embeddings"] == "1",
            has_norm_bias=not is_llama,
            qkv_bias=values["qkv_bias"] == "1",
            dense_bias=values["dense_bias"] == "1",
            ffn_bias=values["ffn_bias"] == "1",
        )

    def linears(self) -> list[Linear]:
        """Of one layer, as they are stored: q, k and v together, gate and up together."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        first = 2 * self.inter if self.is_gated else self.inter
        return [
            Linear("qkv", q + 2 * kv, self.hidden, self.qkv_bias),
            Linear("o", self.hidden, q, self.dense_bias),
            Linear("gate_up" if self.is_gated else "fc1", first, self.hidden, self.ffn_bias),
            Linear("down" if self.is_gated else "fc2", self.hidden, self.inter, self.ffn_bias),
        ]

    def linear_parameters(self) -> int:
        """Weights of all layers' linears and of the head: what a token is multiplied with."""
        layer = sum(linear.n * linear.k for linear in self.linears())
        return self.layers * layer + self.vocab * self.hidden

    def parameters(self) -> int:
        """All of them; a tied table counts once."""
        biases = sum(linear.n for linear in self.linears() if linear.has_bias)
        tables = self.positions * self.hidden
        tables += 0 if self.is_tied else self.vocab * self.hidden
        return self.linear_parameters() + self.layers * biases + self._norms() + tables

    def _norms(self) -> int:
        each = self.hidden * (2 if self.has_norm_bias else 1)
        return (2 * self.layers + 1) * each


def decode_bytes(
    sizes: ModelSizes,
    *,
    scheme: str,
    dtype: str,
    lm_head: str,
    ranks: int,
    batch: int,
    context: float,
) -> dict[str, float]:
    """What one rank must read in one decode step, by kind. lm_head: fp16 (of dtype), w8 or w6, its
    scales included. context: tokens that a new one sees."""
    element = DTYPE_BYTES[dtype]
    weights = scales = 0.0
    for linear in sizes.linears():
        codes, factors = _stored(linear, scheme, element)
        weights += codes + (linear.n * _BIAS_BYTES if linear.has_bias else 0)
        scales += factors
    head = Linear("lm_head", sizes.vocab, sizes.hidden, has_bias=False)
    stored_head = sum(_stored(head, _HEAD_SCHEMES.get(lm_head, "fp16"), element))
    kv_heads = max(sizes.kv_heads / ranks, 1)  # fewer heads than ranks are kept by several
    cache = 2 * sizes.layers * kv_heads * sizes.head_dim * element * context * batch
    parts = {
        "weights": sizes.layers * weights / ranks + sizes._norms() * element,
        "scales": sizes.layers * scales / ranks,
        "lm_head": stored_head / ranks,
        "kv_cache": cache,
    }
    return {**parts, "total": sum(parts.values())}


def _stored(linear: Linear, scheme: str, element: int) -> tuple[float, float]:
    """Bytes of a linear's codes and of its scales."""
    if scheme in ("w8a16", "w8a8"):
        return linear.n * linear.k, 4 * linear.n
    if scheme == "w6ax":
        n, groups = -(-linear.n // 16) * 16, -(-linear.k // _GROUP)
        return n * groups * _GROUP * 6 / 8, 2 * groups * linear.n
    return linear.n * linear.k * element, 0


def mean_context(prompt_tokens: int, output_tokens: int) -> float:
    """Tokens that a decode step sees, itself included, on the mean over all steps but the first."""
    return prompt_tokens + output_tokens / 2


def prefill_operations(sizes: ModelSizes, *, batch: int, prompt_tokens: int) -> float:
    """2 x multiply-adds: the linears over all tokens, the head over the last ones, attention."""
    layer = sum(linear.n * linear.k for linear in sizes.linears())
    linears = 2.0 * sizes.layers * layer * batch * prompt_tokens
    head = 2.0 * sizes.vocab * sizes.hidden * batch
    pairs = batch * prompt_tokens * (prompt_tokens + 1) / 2
    return linears + head + 4.0 * sizes.layers * sizes.heads * sizes.head_dim * pairs


def share_of_bandwidth(bytes_read: float, ms: float, bytes_per_second: float) -> float:
    """1 is the measured ceiling."""
    return bytes_read / (1e-3 * ms) / bytes_per_second
