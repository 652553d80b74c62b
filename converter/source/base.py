"""Source: a checkpoint as named tensors, in Hugging Face's names and order, read by rows."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from flexq_ft.converter.dtypes import Array
from flexq_ft.converter.model_config import ModelConfig

__all__ = ["CONFIG_FILES", "SLOW_TOKENIZER_FILES", "TOKENIZER_FILES"]
__all__ += ["Source", "TensorInfo", "hash_files", "model_name"]

# Copied as they are when the checkpoint has them.
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
# One of which transformers makes tokenizer.json: of LLaMA and others; of OPT and others.
SLOW_TOKENIZER_FILES = ("tokenizer.model", "vocab.json")
CONFIG_FILES = ("config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")
_HASH_CHUNK = 1 << 20


@dataclass(frozen=True)
class TensorInfo:
    shape: tuple[int, ...]
    source_bytes: int  # as stored


class Source(ABC):
    """Reads are thread-safe; each tensor is read in order, from its first row to its last."""

    kind: str  # safetensors | pytorch | gguf

    @property
    @abstractmethod
    def name(self) -> str:
        """The model's name: no path."""

    @property
    @abstractmethod
    def config(self) -> ModelConfig: ...

    @abstractmethod
    def hf_config(self) -> dict[str, Any]:
        """The model's config.json, as transformers reads it."""

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @abstractmethod
    def read_rows(self, name: str, begin: int, end: int) -> Array:
        """Rows [begin, end) of a tensor (elements of a vector) as fp32, fp16 or bf16."""

    @property
    def transforms(self) -> tuple[dict[str, Any], ...]:
        """What was done to the checkpoint's tensors, in order, as the manifest says it."""
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever converts this should know."""
        return ()

    def held_bytes(self, name: str) -> int:
        """Memory that reading a tensor takes beside the rows asked for."""
        return 0

    def input_maximum(self, linear: str) -> float:
        """The largest |x| that "layers.0.down" reads; of calibrated sources."""
        raise NotImplementedError(f"{self.name} was not calibrated")

    @abstractmethod
    def source_files(self) -> tuple[Path, ...]:
        """Every file that the output depends on."""

    @abstractmethod
    def extra_files(self) -> dict[str, bytes]:
        """Tokenizer, chat template and generation config: name -> content."""

    @abstractmethod
    def close(self) -> None:
        """Frees file handles."""


def model_name(path: Path) -> str:
    """A name without a path; of a Hugging Face cache snapshot, the repository's."""
    path = path.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.split("--")[-1]
    return path.stem if path.is_file() else path.name


def hash_files(paths: Iterable[Path], *, over: Event | None = None) -> str:
    """sha256 over the lines "<sha256 of the file>  <name>", sorted by name.

    The same as `sha256sum FILES | sha256sum` in the checkpoint's folder. Raises CancelledError once
    `over` is set.
    """
    lines = []
    buffer = bytearray(_HASH_CHUNK)
    for path in sorted(paths, key=lambda p: p.name):
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                if over is not None and over.is_set():
                    raise CancelledError
                digest.update(memoryview(buffer)[:size])
        lines.append(f"{digest.hexdigest()}  {path.name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
