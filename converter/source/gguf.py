"""GGUF files of the LLaMA architecture: dequantised row by row, in Hugging Face's names and order.

llama.cpp stores the rows of q and k so that each head's two rotary halves interleave; a reader
must put them back, or the model runs and talks nonsense.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, quants

from flexq_ft.converter.architectures.hf_config import parse_hf_config
from flexq_ft.converter.dtypes import Array, FloatArray
from flexq_ft.converter.model_config import ModelConfig
from flexq_ft.converter.source.base import Source, TensorInfo, model_name
from flexq_ft.converter.source.gguf_config import hf_config_of
from flexq_ft.converter.source.gguf_tokenizer import tokenizer_files
from flexq_ft.converter.source.json_file import refuse_lfs_pointer
from flexq_ft.errors import WeightError

__all__ = ["GgufSource"]

# llama.cpp's names; {i} is the layer. Biases share the stem.
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}
_PERMUTED = re.compile(r"blk\.[0-9]+\.attn_[qk]\.(weight|bias)")
_ROPE_FACTORS = "rope_freqs.weight"  # not a weight of the model: see gguf_config.py


@dataclass(frozen=True)
class _Location:
    offset: int
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    row_bytes: int
    permuted: bool


class GgufSource(Source):
    kind = "gguf"

    def __init__(self, path: Path) -> None:
        self._path = path
        refuse_lfs_pointer(path)
        try:
            reader = GGUFReader(path)
            self._metadata = {
                name: field.contents()
                for name, field in reader.fields.items()
                if not name.startswith("GGUF.")
            }
        except (ValueError, KeyError, IndexError, OSError, UnicodeDecodeError) as error:
            raise WeightError(
                f"{path.name} is no valid GGUF file", cause=str(error), hint="download it again"
            ) from error
        size = path.stat().st_size
        self._locations: dict[str, _Location] = {}
        self._rope_factors: FloatArray | None = None
        for tensor in reader.tensors:
            if tensor.data_offset + tensor.n_bytes > size:
                raise WeightError(
                    f"{path.name} holds {size} bytes, but {tensor.name} ends at"
                    f" {tensor.data_offset + tensor.n_bytes}",
                    hint="download the file again",
                )
            if tensor.name == _ROPE_FACTORS:
                self._rope_factors = np.array(tensor.data, np.float32)
                continue
            shape = tuple(int(n) for n in reversed(tensor.shape.tolist()))
            self._locations[_hf_name(tensor.name)] = _Location(
                offset=int(tensor.data_offset),
                shape=shape,
                type=tensor.tensor_type,
                row_bytes=int(tensor.n_bytes) // (shape[0] if len(shape) > 1 else 1),
                permuted=bool(_PERMUTED.fullmatch(tensor.name)),
            )
        self._file = os.open(path, os.O_RDONLY)

    @property
    def name(self) -> str:
        return model_name(self._path)

    @cached_property
    def config(self) -> ModelConfig:
        return parse_hf_config(self.hf_config(), name=self.name)

    def hf_config(self) -> dict[str, Any]:
        return hf_config_of(
            self._metadata,
            name=self.name,
            tensors=self._locations.keys(),
            rope_factors=self._rope_factors,
        )

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(
                place.shape, place.row_bytes * (place.shape[0] if len(place.shape) > 1 else 1)
            )
            for name, place in self._locations.items()
        }

    def read_rows(self, name: str, begin: int, end: int) -> Array:
        place = self._locations[name]
        if not place.permuted:
            return self._read(name, place, begin, end)
        # Whole heads are read, put in order, and the rows asked for cut out.
        head_dim = self.config.head_dim
        first = begin // head_dim * head_dim
        last = -(-end // head_dim) * head_dim
        values = self._read(name, place, first, last)
        pairs = values.reshape(-1, head_dim // 2, 2, *values.shape[1:])
        ordered = pairs.swapaxes(1, 2).reshape(values.shape)
        return ordered[begin - first : end - first]

    def source_files(self) -> tuple[Path, ...]:
        return (self._path,)

    def extra_files(self) -> dict[str, bytes]:
        return tokenizer_files(self._metadata, name=self.name, positions=self.config.max_positions)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read(self, name: str, place: _Location, begin: int, end: int) -> FloatArray:
        vector = len(place.shape) == 1
        offset, size = place.offset, place.row_bytes
        if not vector:
            offset, size = offset + begin * place.row_bytes, (end - begin) * place.row_bytes
        data = bytearray()
        while len(data) < size:
            part = os.pread(self._file, size - len(data), offset + len(data))
            if not part:
                raise WeightError(
                    f"{self._path.name} ended while {name} was read", hint="download it again"
                )
            data += part
        rows = np.frombuffer(data, np.uint8)
        if not vector:
            rows = rows.reshape(end - begin, place.row_bytes)
        try:
            values: FloatArray = quants.dequantize(_typed(rows, place.type), place.type)
        except NotImplementedError as error:
            raise WeightError(
                f"{name} is stored as {place.type.name}, which is not supported",
                hint="a GGUF of another type, or the Hugging Face checkpoint",
            ) from error
        return values[begin:end] if vector else values


def _typed(rows: Array, kind: GGMLQuantizationType) -> Array:
    """Float types are given to the library as such, quantised ones as bytes."""
    if kind is GGMLQuantizationType.F32:
        return rows.view(np.float32)
    if kind is GGMLQuantizationType.F16:
        return rows.view(np.float16)
    return rows


def _hf_name(name: str) -> str:
    """Hugging Face's name; an unknown one stays, and is reported as unexpected."""
    stem, _, kind = name.rpartition(".")
    layer = re.match(r"blk\.([0-9]+)\.", stem)
    template = re.sub(r"^blk\.[0-9]+\.", "blk.{i}.", stem)
    if template not in _NAMES:
        return name
    found = _NAMES[template]
    return f"{found.replace('{i}', layer[1]) if layer else found}.{kind}"
