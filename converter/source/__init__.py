"""Checkpoints that can be converted: safetensors, pytorch_model.bin, GGUF."""

from __future__ import annotations

import re
from pathlib import Path

from flexq_ft.converter.folder import is_model_folder
from flexq_ft.converter.source.base import Source, TensorInfo, hash_files
from flexq_ft.converter.source.safetensors import SafetensorsSource
from flexq_ft.errors import ConfigError

__all__ = ["Source", "TensorInfo", "absent_model", "hash_files", "open_source"]

_FORMATS = "a Hugging Face folder (model.safetensors or pytorch_model.bin) or a GGUF file"


def open_source(path: str | Path) -> Source:
    """Opens a checkpoint: a Hugging Face folder, a GGUF file, or a folder with one GGUF file.

    Reads headers only. Raises ConfigError for a path that is none of these, WeightError for a
    checkpoint with faults.
    """
    path = Path(path)
    if not path.exists():
        raise absent_model(path, hint=_FORMATS)
    if path.is_file():
        if path.suffix == ".gguf":
            return _open_gguf(path)
        raise ConfigError(f"{path} is no checkpoint", hint=_FORMATS)
    for single in ("model.safetensors", "model.safetensors.index.json"):
        if (path / single).is_file():
            return SafetensorsSource(path)
    for single in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
        if (path / single).is_file():
            from flexq_ft.converter.source.pytorch import PytorchSource

            return PytorchSource(path)
    return _open_other_folder(path)


def absent_model(path: Path, *, hint: str) -> ConfigError:
    """The error of a path that is not there; hint: what is expected. ORG/NAME may be meant of the
    Hugging Face Hub, from which other tools fetch it: it says how to do that too."""
    name = str(path)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) and not path.parent.exists():
        hint += f"; one of the Hugging Face Hub: hf download {name} --local-dir {path.name}"
    return ConfigError(f"{path} does not exist", hint=hint)


def _open_other_folder(path: Path) -> Source:
    if is_model_folder(path):
        raise ConfigError(
            f"{path} is a FasterTransformer or flexq-ft folder, which cannot be converted again",
            hint="convert the Hugging Face checkpoint it came from",
        )
    models = sorted(path.glob("*.gguf"))
    if len(models) == 1:
        return _open_gguf(models[0])
    if models:
        names = ", ".join(model.name for model in models)
        raise ConfigError(f"{path} holds {len(models)} GGUF files", hint=f"name one: {names}")
    if (path / "adapter_config.json").is_file():
        raise ConfigError(
            f"{path} is an adapter, without the model that it belongs to",
            hint="merge it into its model (merge_and_unload of peft), and save that",
        )
    if weights := sorted(file.name for file in path.glob("*.safetensors")):
        raise ConfigError(
            f"{path} holds {weights[0]}, but no model.safetensors.index.json to say what is where",
            hint="download the whole checkpoint; a single file is named model.safetensors",
        )
    raise ConfigError(f"{path} holds no checkpoint", hint=_FORMATS)


def _open_gguf(path: Path) -> Source:
    from flexq_ft.converter.source.gguf import GgufSource

    return GgufSource(path)
