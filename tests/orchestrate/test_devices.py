"""--device: what each name means with and without GPUs, and how ranks share them."""

from __future__ import annotations

from typing import Any

import pytest

from flexq_ft import _native
from flexq_ft.errors import ConfigError, DeviceError
from flexq_ft.orchestrate import devices
from flexq_ft.orchestrate.devices import Device, choose_device
from flexq_ft.orchestrate.engine.options import EngineOptions
from flexq_ft.orchestrate.engine.single_rank import SingleRank


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: [{"name": "G"}, {"name": "G"}])


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", list)


def choose(asked: str, *, scheme: str = "fp16", dtype: str = "fp16", ranks: int = 1) -> Any:
    said: list[str] = []
    device = choose_device(asked, scheme=scheme, dtype=dtype, ranks=ranks, notify=said.append)
    return device, said


def test_auto_is_the_gpu_where_there_is_one(two_gpus: None) -> None:
    assert choose("auto") == (Device("cuda", 0), [])
    assert choose("auto", scheme="w6ax", ranks=2) == (Device("cuda", 0), [])


def test_auto_without_a_gpu_is_the_cpu_in_silence(no_gpus: None) -> None:
    assert choose("auto") == (Device(), [])


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ({"scheme": "fp32"}, "fp32 has no GPU kernels"),
        ({"dtype": "fp32"}, "not in fp32"),
        ({"ranks": 3}, "3 ranks need a GPU each, and this machine has 2"),
    ],
)
def test_auto_says_why_it_falls_to_the_cpu(two_gpus: None, case: dict[str, Any], why: str) -> None:
    device, (line,) = choose("auto", **case)
    assert device == Device() and why in line


def test_what_was_asked_for_is_taken_or_refused(two_gpus: None) -> None:
    assert choose("cpu") == (Device(), [])
    assert choose("cuda", ranks=2) == (Device("cuda", 0), [])
    assert choose("cuda:1") == (Device("cuda", 1), [])
    assert choose("cuda", dtype="fp32")[0] == Device("cuda", 0)  # the engine refuses it
    with pytest.raises(DeviceError, match="there is no GPU 2, and this process sees 2"):
        choose("cuda:2")
    with pytest.raises(DeviceError, match="3 ranks need a GPU each, and this process sees 2"):
        choose("cuda", ranks=3)
    with pytest.raises(ConfigError) as caught:
        choose("cuda:1", ranks=2)
    assert "CUDA_VISIBLE_DEVICES=1,2" in caught.value.hint


def test_cuda_without_a_gpu_is_a_device_error(no_gpus: None) -> None:
    with pytest.raises(DeviceError) as caught:
        choose("cuda")
    assert caught.value.exit_code == 4 and caught.value.cause


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", ""])
def test_unknown_devices_are_configuration_errors(name: str) -> None:
    with pytest.raises(ConfigError, match="is not known"):
        choose(name)


def test_labels() -> None:
    assert Device().label(2) == "cpu"
    assert Device("cuda", 1).label() == "cuda:1"
    assert Device("cuda", 0).label(2) == "cuda:0-1"


class FakeRanks:
    """The third rank of its host."""

    local_rank = 2

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def comm(self, device: str, gpu: int) -> str:
        self.asked.append((device, gpu))
        return "comm"


def test_a_rank_takes_the_gpu_of_its_place_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class FakeEngine:
        threads = 1

        def __init__(self, model_dir: str, **options: Any) -> None:
            made.append(options)

        def memory(self) -> dict[str, int]:
            return {"weights": 5, "kv_cache": 2}

    monkeypatch.setattr(_native, "Engine", FakeEngine)
    ranks = FakeRanks()
    options = EngineOptions("m", tensor_parallel_size=4, device="cuda", synthetic_weights=True)
    rank = SingleRank(options, ranks)
    assert ranks.asked == [("cuda", 2)]
    assert (made[0]["device"], made[0]["gpu"], made[0]["comm"]) == ("cuda", 2, "comm")
    assert made[0]["synthetic_weights"] and made[0]["graphs"]
    assert made[0]["step_kernel"] == "auto"
    assert rank.peak_memory_bytes() == 7
    SingleRank(EngineOptions("m", device="cuda", gpu=1))
    assert (made[1]["gpu"], made[1]["comm"]) == (1, None)
    assert SingleRank(EngineOptions("m")).peak_memory_bytes() > 1000
