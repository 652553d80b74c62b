"""Peak device memory as a case's parent sees it, with a stand-in for nvidia-ml-py."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from flexq_ft.orchestrate.sweep.gpu_memory import GpuMemoryWatch, with_polled

GB = 10**9


class FakeNvml:
    """GPUs with settable free bytes; `asked` counts the questions."""

    def __init__(self, *free: int) -> None:
        self.free = list(free)
        self.asked = 0
        self.fails = False

    def nvmlInit(self) -> None: ...  # noqa: N802
    def nvmlShutdown(self) -> None: ...  # noqa: N802

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        if self.fails:
            raise RuntimeError("the GPU has fallen off the bus")
        self.asked += 1
        return SimpleNamespace(free=self.free[handle])

    def wait(self) -> None:
        """Until what was set has been seen on every GPU."""
        target = self.asked + 2 * len(self.free)
        deadline = time.monotonic() + 10
        while self.asked < target and time.monotonic() < deadline:
            time.sleep(0.005)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml(80 * GB, 70 * GB)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_the_least_free_memory_counts_and_only_until_stop(nvml: FakeNvml) -> None:
    with GpuMemoryWatch("cuda:0", ranks=1) as watch:
        watch.start()
        for free in (79, 60, 75):
            nvml.free[0] = free * GB
            nvml.wait()
        watch.stop()
        nvml.free[0] = 1 * GB
        time.sleep(0.03)
    assert watch.used_bytes() == 20 * GB


def test_a_baseline_before_the_case_does_not_count(nvml: FakeNvml) -> None:
    with GpuMemoryWatch("cuda", ranks=1) as watch:
        nvml.free[0] = 10 * GB
        time.sleep(0.03)
        nvml.free[0] = 75 * GB
        watch.start()
        nvml.wait()
    assert watch.used_bytes() == 5 * GB
    with GpuMemoryWatch("cuda", ranks=1) as watch:
        time.sleep(0.03)
    assert watch.used_bytes() is None  # it never came so far as to load


def test_the_gpus_of_all_ranks_add_up(nvml: FakeNvml) -> None:
    with GpuMemoryWatch("auto", ranks=2) as watch:
        watch.start()
        nvml.free[:] = [70 * GB, 69 * GB]
        nvml.wait()
    assert watch.used_bytes() == 11 * GB


def test_a_driver_that_no_longer_answers_gives_no_figure(nvml: FakeNvml) -> None:
    with GpuMemoryWatch("cuda", ranks=1) as watch:
        watch.start()
        nvml.wait()
        nvml.fails = True
        time.sleep(0.05)
    assert watch.used_bytes() is None


def test_nothing_is_watched_on_the_cpu_or_without_a_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for device in ("cpu", "cuda"):
        with GpuMemoryWatch(device, ranks=1) as watch:
            watch.start()
        assert watch.used_bytes() is None


def row(device: str, peak: int) -> dict[str, Any]:
    metrics = {"peak_memory_bytes": peak, "memory_bytes": {"weights": 3, "polled": None}}
    return {"metrics": metrics, "machine": {"device": device}, "flags": []}


@pytest.mark.parametrize(("polled", "peak"), [(5, 9), (12, 12)])
def test_the_larger_figure_counts(polled: int, peak: int) -> None:
    metrics = with_polled(row("cuda:0", 9), polled)["metrics"]
    assert metrics["peak_memory_bytes"] == peak
    assert metrics["memory_bytes"] == {"weights": 3, "polled": polled}


def test_a_gpu_row_without_a_polled_figure_says_so() -> None:
    assert with_polled(row("cuda:0", 9), None)["flags"] == ["unpolled"]
    assert with_polled(row("cpu", 9), 77) == row("cpu", 9)
    failed = {"metrics": None, "machine": None, "flags": []}
    assert with_polled(failed, None) == failed
