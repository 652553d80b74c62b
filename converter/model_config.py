"""ModelConfig: the numbers of one decoder-only model, as the manifest's `model` object holds them.

The same fields, in the same order, as the C++ struct in ft/core/model_config.h.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ModelConfig", "RopeConfig"]


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary embedding, half rotation. Fields that the type does not use keep these values."""

    theta: float
    type: str = "default"  # default | linear | llama3
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """All sizes of a model. `rope` is None for learned positions."""

    name: str
    architecture: str  # llama | opt: the runtime's wiring, not Hugging Face's class
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    inter_size: int
    max_positions: int
    norm: str  # rms | layer
    norm_eps: float
    activation: str  # silu | relu | gelu
    gated_ffn: bool
    rope: RopeConfig | None
    tie_word_embeddings: bool
    qkv_bias: bool
    dense_bias: bool
    ffn_bias: bool
    sliding_window: int | None
    bos_id: int
    eos_ids: tuple[int, ...]

    def dims(self) -> dict[str, int]:
        """The named sizes that tensor specs use."""
        return {
            "hidden": self.hidden_size,
            "q": self.num_heads * self.head_dim,
            "kv": self.num_kv_heads * self.head_dim,
            "inter": self.inter_size,
            "vocab": self.vocab_size,
            "positions": self.max_positions,
        }

    def to_manifest(self) -> dict[str, Any]:
        fields = asdict(self)
        del fields["architecture"]
        fields["eos_ids"] = list(self.eos_ids)
        return fields
