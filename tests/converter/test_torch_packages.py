"""The device that torch takes, and what is said of one that it does not see."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flexq_ft.converter.torch_packages import torch_device
from flexq_ft.errors import ConfigError, DeviceError


def fake_torch(gpus: int) -> Any:
    cuda = SimpleNamespace(is_available=lambda: gpus > 0, device_count=lambda: gpus)
    return SimpleNamespace(cuda=cuda, __version__="9", version=SimpleNamespace(cuda="13"))


@pytest.mark.parametrize(
    ("gpus", "asked", "taken"),
    [(0, "auto", "cpu"), (2, "auto", "cuda"), (2, "cpu", "cpu"), (2, "cuda:1", "cuda:1")],
)
def test_a_device_that_is_there_is_taken(gpus: int, asked: str, taken: str) -> None:
    assert torch_device(fake_torch(gpus), asked, flag="--device") == taken


@pytest.mark.parametrize(
    ("gpus", "asked", "said"),
    [(0, "cuda", "no GPU"), (1, "cuda:1", "1 GPU"), (2, "cuda:2", "2 GPUs")],
)
def test_a_gpu_that_is_not_there_is_refused_by_the_flags_name(
    gpus: int, asked: str, said: str
) -> None:
    with pytest.raises(DeviceError) as error:
        torch_device(fake_torch(gpus), asked, flag="--calibration-device")
    assert error.value.message == f"--calibration-device {asked}: torch sees {said}"
    assert error.value.hint == "--calibration-device cpu"


def test_another_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="--device gpu is not known"):
        torch_device(fake_torch(1), "gpu", flag="--device")
