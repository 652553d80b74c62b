"""pytorch_model.bin checkpoints, single or in shards. Needs the torch extra.

Files are opened with weights_only (no code in a pickle runs) and mapped, so that one tensor at a
time is in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexq_ft.converter.dtypes import BF16, Array
from flexq_ft.converter.source.base import TensorInfo
from flexq_ft.converter.source.hf_folder import HfFolder, find_weight_files
from flexq_ft.errors import ConfigError, WeightError

if TYPE_CHECKING:
    import torch

__all__ = ["PytorchSource"]


class PytorchSource(HfFolder):
    kind = "pytorch"

    def __init__(self, folder: Path) -> None:
        try:
            import torch
        except ImportError as error:
            raise ConfigError(
                f"{folder} holds pytorch_model.bin, which needs torch to be read",
                cause=str(error),
                hint="pip install 'flexq-ft[torch]', or save the checkpoint as safetensors",
            ) from error
        self._torch: Any = torch
        paths, weight_map = find_weight_files(folder, "pytorch_model.bin")
        super().__init__(folder, paths)
        self._lock = threading.Lock()
        self._open_path: Path | None = None
        self._open_tensors: dict[str, torch.Tensor] = {}
        self._paths: dict[str, Path] = {}
        self._tensors: dict[str, TensorInfo] = {}
        for path in paths:
            for name, tensor in self._load(path).items():
                self._paths[name] = path
                self._tensors[name] = TensorInfo(
                    tuple(tensor.shape), tensor.numel() * tensor.element_size()
                )
        missing = sorted(set(weight_map) - set(self._paths))
        if missing:
            raise WeightError(
                f"{len(missing)} tensors of pytorch_model.bin.index.json are in no file",
                cause=", ".join(missing[:20]),
                hint="download the checkpoint again",
            )

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def read_rows(self, name: str, begin: int, end: int) -> Array:
        torch = self._torch
        with self._lock:
            tensor = self._load(self._paths[name])[name][begin:end].contiguous().clone()
        if tensor.dtype == torch.bfloat16:
            bits: Array = tensor.view(torch.int16).numpy()
            return bits.view(BF16)
        if tensor.dtype in (torch.float32, torch.float16):
            values: Array = tensor.numpy()
            return values
        raise WeightError(
            f"{name} is stored as {tensor.dtype}, which is not supported",
            hint="supported: float32, float16, bfloat16",
        )

    def close(self) -> None:
        self._open_tensors, self._open_path = {}, None

    def _load(self, path: Path) -> dict[str, torch.Tensor]:
        if self._open_path != path:
            self.close()
            self._open_tensors, self._open_path = self._load_file(path), path
        return self._open_tensors

    def _load_file(self, path: Path) -> dict[str, torch.Tensor]:
        try:
            try:
                state = self._torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                # The format before PyTorch 1.6 cannot be mapped.
                state = self._torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise WeightError(
                f"{path.name} cannot be read as PyTorch weights",
                cause=str(error).split("\n")[0],
                hint="download it again",
            ) from error
        if not isinstance(state, dict) or not all(
            isinstance(value, self._torch.Tensor) for value in state.values()
        ):
            raise WeightError(
                f"{path.name} is no state dict of tensors", hint="save model.state_dict() into it"
            )
        return state
