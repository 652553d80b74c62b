"""torch and transformers, for what runs a checkpoint in them, and the device that torch takes."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from flexq_ft.errors import ConfigError, DeviceError

__all__ = ["import_torch", "torch_device"]

_DEVICE = re.compile(r"auto|cpu|cuda(?::(\d+))?")


def import_torch(wanted_by: str) -> tuple[Any, Any]:
    """torch and transformers. wanted_by: of the error, a flag or a verb.

    Raises ConfigError where one is not installed.
    """
    try:
        return import_module("torch"), import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            f"{wanted_by} runs the model in torch and needs torch and transformers",
            cause=str(error),
            hint="pip install torch transformers",
        ) from error


def torch_device(torch: Any, device: str, *, flag: str) -> str:
    """What `device` (auto, cpu, cuda, cuda:N) stands for. flag: of the error.

    Raises ConfigError for what is none of these, DeviceError for a GPU that torch does not see.
    """
    known = _DEVICE.fullmatch(device)
    if known is None:
        raise ConfigError(f"{flag} {device} is not known", hint="auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if count else "cpu"
    if device != "cpu" and int(known[1] or 0) >= count:
        raise DeviceError(
            f"{flag} {device}: torch sees {count or 'no'} GPU{'s' if count > 1 else ''}",
            cause=f"torch {torch.__version__}, CUDA {torch.version.cuda or 'not built'}",
            hint=f"{flag} cpu",
        )
    return device
