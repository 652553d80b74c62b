"""What `--device` means on this machine: auto, cpu, cuda or cuda:N.

auto is the GPU where the build and the driver have one and the model runs there, else the CPU; a
fallback says why. Looking for GPUs makes no context on any.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flexq_ft.errors import ConfigError, DeviceError

# What the engine has kernels for on a GPU; everything runs on the CPU.
GPU_SCHEMES = ("fp16", "bf16", "w8a16", "w8a8", "w6ax")
GPU_DTYPES = ("fp16", "bf16")

_GRAMMAR = re.compile(r"auto|cpu|cuda(?::(\d+))?")


@dataclass(frozen=True)
class Device:
    """Where a model runs. gpu: of a host's first rank; the next rank takes the next one."""

    kind: str = "cpu"
    gpu: int = 0

    def label(self, ranks: int = 1) -> str:
        """As `cpu`, `cuda:1`, or `cuda:0-1` for several ranks."""
        if self.kind == "cpu":
            return "cpu"
        last = "" if ranks == 1 else f"-{self.gpu + ranks - 1}"
        return f"cuda:{self.gpu}{last}"


def check_device(text: str) -> str:
    """The same text. Raises ConfigError if it names no device."""
    if not isinstance(text, str) or _GRAMMAR.fullmatch(text) is None:
        raise ConfigError(
            f"device '{text}' is not known.",
            hint="auto, cpu, cuda, or cuda:N for one of several",
        )
    return text


def gpus() -> list[dict[str, Any]]:
    """The GPUs that this build can use, as `_native.gpus()`."""
    from flexq_ft import _native

    return [dict(gpu) for gpu in _native.gpus()]


def why_not_on_gpu(scheme: str, dtype: str | None) -> str:
    """Empty where a GPU runs it."""
    if scheme not in GPU_SCHEMES:
        return f"{scheme} has no GPU kernels"
    if dtype is not None and dtype not in GPU_DTYPES:
        return f"the GPU computes in {' or '.join(GPU_DTYPES)}, not in {dtype}"
    return ""


def choose_device(
    asked: str,
    *,
    scheme: str,
    dtype: str | None,
    ranks: int = 1,
    notify: Callable[[str], None],
) -> Device:
    """The device that `asked` stands for; ranks: so many share this host's GPUs.

    Raises ConfigError for an unknown name or one GPU for several ranks, DeviceError if the GPU that
    was asked for is not there. A type without GPU kernels is the engine's to refuse.
    """
    check_device(asked)
    if asked == "cpu":
        return Device()
    if asked == "auto":
        return _automatic(scheme, dtype, ranks, notify)
    _, _, index = asked.partition(":")
    if index and ranks > 1:
        raise ConfigError(
            f"--device {asked} names one GPU, and {ranks} ranks need one each.",
            hint=f"--device cuda, with CUDA_VISIBLE_DEVICES={_some_gpus(int(index), ranks)}",
        )
    first, count = int(index or 0), len(gpus())
    if first + ranks > count:
        raise _too_few(asked, first, ranks, count)
    return Device("cuda", first)


def _automatic(scheme: str, dtype: str | None, ranks: int, notify: Callable[[str], None]) -> Device:
    count = len(gpus())
    if count == 0:
        return Device()
    why = why_not_on_gpu(scheme, dtype)
    if not why and count < ranks:
        why = f"{ranks} ranks need a GPU each, and this machine has {count}"
    if why:
        notify(f"running on the CPU: {why}")
        return Device()
    return Device("cuda")


def _some_gpus(first: int, count: int) -> str:
    return ",".join(str(first + i) for i in range(count))


def _too_few(asked: str, first: int, ranks: int, count: int) -> DeviceError:
    if count == 0:
        from flexq_ft import _native

        return DeviceError(
            f"--device {asked}: there is no GPU that this build can use.",
            cause=_native.no_gpu_cause() + ".",
            hint="flexq-ft doctor, or --device cpu",
        )
    wanted = f"{ranks} ranks need a GPU each" if ranks > 1 else f"there is no GPU {first}"
    return DeviceError(
        f"--device {asked}: {wanted}, and this process sees {count}.",
        cause="CUDA_VISIBLE_DEVICES limits what a process sees.",
        hint="fewer ranks, or --device cpu" if ranks > 1 else f"--device cuda:{count - 1}",
    )
