"""Rotation: the residual stream in another orthonormal basis, folded into the weights.

With h' = h Q, an RMS norm without weights commutes with Q, so its weights go into the linears that
follow, and the model computes the same function:

    embedding        E Q
    q, k, gate, up   W diag(g) Q       g: weights of the norm in front, which become ones
    v                R^T W diag(g) Q   R: the same for every head
    o                Q^T W R           (its bias b: Q^T b)
    down             Q^T W             (its bias b: Q^T b)
    head             W diag(g) Q

R rotates within each head: attention mixes the rows of V linearly, so o undoes what v did. Outlier
channels are spread over all channels, which is what quantised inputs need. Products are in fp64,
rounded to fp32 once here, and to the stored type by the codec.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexq_ft.converter.architectures import ARCHITECTURES
from flexq_ft.converter.dtypes import Array, FloatArray, as_float32
from flexq_ft.converter.model_config import ModelConfig
from flexq_ft.converter.source import Source, TensorInfo
from flexq_ft.converter.transforms.base import TransformedSource
from flexq_ft.converter.transforms.orthogonal import Rotation
from flexq_ft.errors import ConfigError

__all__ = ["RotatedSource"]

_SEED = 0
_HEAD = "lm_head.weight"
_EMBEDDING = "embed_tokens.weight"
_FINAL_NORM = "norm.weight"
_BLOCK_ELEMENTS = 1 << 20  # of fp64, when whole matrices are rotated


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """What happens to a tensor. norm: whose weights its columns take; rows, columns: which rotation
    they meet, `residual` or `heads`; ones: it is a norm's weights."""

    norm: str = ""
    rows: str = ""
    columns: str = ""
    ones: bool = False


# By Hugging Face's names without `model.` and the layer.
_RULES = {
    _EMBEDDING: _Rule(columns="residual"),
    "input_layernorm.weight": _Rule(ones=True),
    "self_attn.q_proj.weight": _Rule(norm="input_layernorm.weight", columns="residual"),
    "self_attn.k_proj.weight": _Rule(norm="input_layernorm.weight", columns="residual"),
    "self_attn.v_proj.weight": _Rule(
        norm="input_layernorm.weight", columns="residual", rows="heads"
    ),
    "self_attn.v_proj.bias": _Rule(rows="heads"),
    "self_attn.o_proj.weight": _Rule(rows="residual", columns="heads"),
    "self_attn.o_proj.bias": _Rule(rows="residual"),
    "post_attention_layernorm.weight": _Rule(ones=True),
    "mlp.gate_proj.weight": _Rule(norm="post_attention_layernorm.weight", columns="residual"),
    "mlp.up_proj.weight": _Rule(norm="post_attention_layernorm.weight", columns="residual"),
    "mlp.down_proj.weight": _Rule(rows="residual"),
    "mlp.down_proj.bias": _Rule(rows="residual"),
    _FINAL_NORM: _Rule(ones=True),
    _HEAD: _Rule(norm=_FINAL_NORM, columns="residual"),
}
_NAME = re.compile(r"(?P<root>model\.)?(?P<layer>layers\.[0-9]+\.)?(?P<name>.*)")


class RotatedSource(TransformedSource):
    """The same function of another basis. A tied model whose final norm has weights other than one
    gets a head of its own, which `notes` says."""

    def __init__(self, source: Source) -> None:
        """Raises ConfigError for a model with LayerNorm, WeightError for a faulty checkpoint."""
        super().__init__(source)
        config = source.config
        if config.norm != "rms":
            raise ConfigError(
                f"--rotate needs a model with RMS norms, and {config.name} has LayerNorm",
                cause="LayerNorm subtracts the mean of the channels, which a rotation changes",
                hint="convert without --rotate",
            )
        shapes = {name: info.shape for name, info in source.tensors.items()}
        ARCHITECTURES[config.architecture].units(config, shapes)
        self._root = "model." if any(name.startswith("model.") for name in shapes) else ""
        self._rotations = {
            "residual": Rotation(config.hidden_size, seed=_SEED),
            "heads": Rotation(config.head_dim, seed=_SEED + 1),
        }
        # Rotated over their rows as a whole, and kept from the first read to the last.
        self._held: dict[str, FloatArray] = {}

    @property
    def transforms(self) -> tuple[dict[str, Any], ...]:
        kinds = {which: rotation.kind for which, rotation in self._rotations.items()}
        return (*self._source.transforms, {"name": "rotation", **kinds, "seed": _SEED})

    @property
    def notes(self) -> tuple[str, ...]:
        if not self._unties:
            return self._source.notes
        elements = self._source.config.vocab_size * self._source.config.hidden_size
        return (
            *self._source.notes,
            f"the rotated embedding and head differ by the final norm's weights, so this tied model"
            f" is stored with a head of its own, of {elements:,} weights",
        )

    @cached_property
    def _unties(self) -> bool:
        tied = self._source.config.tie_word_embeddings
        return tied and bool(np.any(self._norm(self._root + _FINAL_NORM) != 1.0))

    @cached_property
    def config(self) -> ModelConfig:
        config = self._source.config
        return replace(config, tie_word_embeddings=False) if self._unties else config

    def hf_config(self) -> dict[str, Any]:
        config = self._source.hf_config()
        return {**config, "tie_word_embeddings": False} if self._unties else config

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        tensors = self._source.tensors
        if not self._unties:
            return tensors
        return {**tensors, _HEAD: tensors[self._root + _EMBEDDING]}

    def held_bytes(self, name: str) -> int:
        below = self._source.held_bytes(name)
        info = self.tensors[name]
        if self._rule(name)[1].rows != "residual":
            return below
        return below + info.source_bytes + 4 * int(np.prod(info.shape))

    def read_rows(self, name: str, begin: int, end: int) -> Array:
        layer, rule = self._rule(name)
        if rule.ones:
            return np.ones(end - begin, np.float32)
        if rule.rows == "residual":
            return self._read_held(name, rule, begin, end)
        # Heads are rotated whole, and the rows asked for cut out.
        size = self._rotations[rule.rows].size if rule.rows else 1
        first, last = begin // size * size, -(-end // size) * size
        shape = self.tensors[name].shape[1:]
        out = np.empty((last - first, *shape), np.float32)
        step = max(size, _BLOCK_ELEMENTS // max((1, *shape)) // size * size)
        for at in range(first, last, step):
            stop = min(at + step, last)
            out[at - first : stop - first] = self._rotate_block(name, layer, rule, at, stop)
        return out[begin - first : end - first]

    def _rotate_block(
        self, name: str, layer: str, rule: _Rule, begin: int, end: int
    ) -> NDArray[np.float64]:
        source_name = self._root + _EMBEDDING if name == _HEAD and self._unties else name
        rows = as_float32(self._source.read_rows(source_name, begin, end)).astype(np.float64)
        if rule.norm:
            rows *= self._norm(self._root + layer + rule.norm)
        if rule.columns:
            rows = self._along_last(rows, rule.columns)
        return self._along_last(rows.T, rule.rows).T if rule.rows else rows

    def _read_held(self, name: str, rule: _Rule, begin: int, end: int) -> FloatArray:
        whole = self._held.get(name)
        if whole is None:
            whole = self._held[name] = self._rotate_rows(name, rule)
        if end == len(whole):
            self._held.pop(name, None)
        return whole[begin:end]

    def _rotate_rows(self, name: str, rule: _Rule) -> FloatArray:
        rows = self._source.tensors[name].shape[0]
        values = self._source.read_rows(name, 0, rows)
        flat = values.reshape(rows, -1)
        out = np.empty(flat.shape, np.float32)
        size = self._rotations[rule.columns].size if rule.columns else 1
        step = max(size, _BLOCK_ELEMENTS // rows // size * size)
        for begin in range(0, flat.shape[1], step):
            block = as_float32(flat[:, begin : begin + step]).astype(np.float64)
            if rule.columns:
                block = self._along_last(block, rule.columns)
            out[:, begin : begin + step] = self._along_last(block.T, rule.rows).T
        return out.reshape(values.shape)

    def _along_last(self, values: NDArray[np.float64], which: str) -> NDArray[np.float64]:
        """values [..., a multiple of the rotation's size], each run of that size rotated."""
        rotation = self._rotations[which]
        flat = np.ascontiguousarray(values).reshape(-1, rotation.size)
        return rotation.apply(flat).reshape(values.shape)

    def _norm(self, name: str) -> NDArray[np.float64]:
        size = self._source.config.hidden_size
        return as_float32(self._source.read_rows(name, 0, size)).astype(np.float64)

    def _rule(self, name: str) -> tuple[str, _Rule]:
        match = _NAME.fullmatch(name)
        assert match is not None  # it matches every text
        return match["layer"] or "", _RULES.get(match["name"], _Rule())
