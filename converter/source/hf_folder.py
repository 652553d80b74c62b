"""What every Hugging Face folder has beside its weights: configuration and tokenizer files."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from flexq_ft.converter.architectures.hf_config import parse_hf_config
from flexq_ft.converter.model_config import ModelConfig
from flexq_ft.converter.source.base import (
    CONFIG_FILES,
    SLOW_TOKENIZER_FILES,
    TOKENIZER_FILES,
    Source,
    model_name,
)
from flexq_ft.converter.source.json_file import read_json_object, refuse_lfs_pointer
from flexq_ft.errors import WeightError

__all__ = ["HfFolder", "find_weight_files"]


class HfFolder(Source):
    """Base of the folder formats; weight_paths: the files that hold tensors."""

    def __init__(self, path: Path, weight_paths: tuple[Path, ...]) -> None:
        self._path = path
        self._weight_paths = weight_paths
        for file in self.source_files():
            refuse_lfs_pointer(file)
            if file.name in TOKENIZER_FILES and file.suffix == ".json":
                read_json_object(file)  # before hours of work, and not when the model is opened

    @property
    def name(self) -> str:
        return model_name(self._path)

    @cached_property
    def config(self) -> ModelConfig:
        generation = self._path / "generation_config.json"
        return parse_hf_config(
            self.hf_config(),
            name=self.name,
            generation=read_json_object(generation) if generation.is_file() else None,
        )

    def hf_config(self) -> dict[str, Any]:
        return read_json_object(self._path / "config.json")

    @property
    def notes(self) -> tuple[str, ...]:
        if (self._path / "tokenizer.json").is_file():
            return ()
        note = f"{self.name} holds no tokenizer.json: the model will take and give token ids only"
        if slow := [name for name in SLOW_TOKENIZER_FILES if (self._path / name).is_file()]:
            note += f"; transformers' AutoTokenizer makes one of {slow[0]} (save_pretrained)"
        return (note,)

    def source_files(self) -> tuple[Path, ...]:
        small = (self._path / name for name in (*CONFIG_FILES, *TOKENIZER_FILES))
        return (*self._weight_paths, *(path for path in small if path.is_file()))

    def extra_files(self) -> dict[str, bytes]:
        paths = (self._path / name for name in TOKENIZER_FILES)
        return {path.name: path.read_bytes() for path in paths if path.is_file()}


def find_weight_files(folder: Path, single: str) -> tuple[tuple[Path, ...], dict[str, str]]:
    """Weight files of a folder, and tensor -> file name where an index lists them.

    single: "model.safetensors" or "pytorch_model.bin". Raises WeightError for an index that names
    a file outside the folder, or one that is missing.
    """
    index = folder / f"{single}.index.json"
    if not index.is_file():
        return (folder / single,), {}
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightError(f"{index.name} has no weight_map", hint="download it again")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or file in ("", ".", "..") or "/" in file or "\\" in file:
            raise WeightError(
                f"{index.name} puts {tensor} into {file!r}, not a file name",
                hint="download it again",
            )
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise WeightError(
            f"{len(missing)} of {len(names)} weight files of {folder.name} are missing",
            cause=", ".join(missing[:20]),
            hint="download the checkpoint again",
            files=missing,
        )
    return tuple(folder / name for name in names), weight_map
