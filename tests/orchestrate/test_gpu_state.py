"""The state of GPUs from nvidia-ml-py or nvidia-smi, and doctor's findings about them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.errors import DeviceError
from flexq_ft.orchestrate import devices, doctor, envelope, gpu_probes, gpu_state, self_test
from flexq_ft.orchestrate.gpu_state import GpuState, read_states, slowdowns_of
from tests.orchestrate.test_doctor import finding
from tests.reference import quantization

GPU = {
    "name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "multiprocessors": 132,
    "l2_bytes": 50 << 20, "total_bytes": 80_000_000_000,
}  # fmt: skip


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """`nvidia_smi(gpu line, pids)`: a program of that name; returns where its calls are kept."""

    def make(line: str, pids: str) -> Path:
        calls = tmp_path / "calls"
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {calls}\n'
            f'case "$1" in --query-gpu*) echo "{line}";; *) printf "{pids}";; esac\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return calls

    return make


LINE = "H100, GPU-1, 580.1, 1980, 2619, 1980, 41, 120.5, 700.00, 3, 0x0000000000000001"


def test_nvidia_smi_is_read_and_nothing_set(
    no_nvml: None, nvidia_smi: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    calls = nvidia_smi(LINE, "12\\n7\\n")
    (got,) = read_states([0])
    assert (got.name, got.uuid, got.sm_mhz, got.power_w) == ("H100", "GPU-1", 1980.0, 120.5)
    assert got.pids == (7, 12) and got.slowdowns == ()
    lines = calls.read_text().splitlines()
    assert len(lines) == 2 and all("--query-" in line and "--id=0" in line for line in lines)


def test_what_is_not_supported_is_none(
    no_nvml: None, nvidia_smi: Callable[[str, str], Path]
) -> None:
    nvidia_smi("H100, GPU-1, 580.1, [N/A], 2619, 1980, 41, [N/A], 700, 3, [N/A]", "")
    (got,) = read_states([0])
    assert got.sm_mhz is None and got.power_w is None and got.pids == ()


def test_visible_devices_renumber(
    no_nvml: None, nvidia_smi: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc")
    calls = nvidia_smi(LINE, "")
    read_states([0, 1])
    assert "--id=3" in calls.read_text() and "--id=GPU-abc" in calls.read_text()


def test_without_any_source_the_states_are_empty(
    no_nvml: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert read_states([0, 1]) == [GpuState(), GpuState()]


def test_slowdowns_are_named_and_idling_is_none() -> None:
    assert slowdowns_of(0x1 | 0x2 | 0x100) == ()
    assert slowdowns_of(0x4 | 0x40) == ("power cap", "hardware thermal slowdown")


class FakeNvmlError(Exception):
    pass


def refused(*args: Any) -> Any:
    raise FakeNvmlError


def test_nvml_is_preferred_and_may_refuse_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name: (lambda *args: 1) for name in (
        "nvmlInit", "nvmlShutdown", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetTemperature", "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetEnforcedPowerLimit", "nvmlSystemGetDriverVersion", "nvmlDeviceGetUUID",
    )}  # fmt: skip
    fake = SimpleNamespace(
        **names,
        NVMLError=FakeNvmlError,
        NVML_CLOCK_SM=0,
        NVML_CLOCK_MEM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetName=lambda handle: b"H100",
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=5)],
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x80,
        nvmlDeviceGetUtilizationRates=refused,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (got,) = read_states([0])
    assert (got.name, got.pids, got.slowdowns) == ("H100", (5,), ("power brake",))
    assert got.utilization_percent is None and got.power_w == pytest.approx(1e-3)


# doctor on a machine with GPUs


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    build = {**_native.build_info(), "cuda": True, "cuda_architectures": "80,90a"}
    monkeypatch.setattr(_native, "build_info", lambda: build)
    monkeypatch.setattr(_native, "gpus", lambda: [GPU, {**GPU, "compute_capability": "7.5"}])
    monkeypatch.setattr(_native, "gpu_free_bytes", lambda gpu: 70_000_000_000)
    monkeypatch.setattr(_native, "gpu_peer_access", lambda a, b: a < b)
    monkeypatch.setattr(_native, "cuda_versions", lambda: {"driver": "13.1", "runtime": "13.0"})
    library = {"path": "/lib/x.so", "version": "13.1.0"}
    monkeypatch.setattr(_native, "cublaslt_info", lambda: library, raising=False)

    def no_nccl() -> Any:
        raise DeviceError("NCCL was not found", cause="looked in /lib", hint="pip install it")

    monkeypatch.setattr(_native, "nccl_info", no_nccl, raising=False)
    monkeypatch.setattr(gpu_probes, "read_states", lambda gpus: [GpuState(sm_mhz=1980.0)])
    monkeypatch.setattr(_native.ops, "use_device", lambda name: None)
    monkeypatch.setattr(_native.ops, "gpu_gemm", numpy_product, raising=False)
    monkeypatch.setattr(_native.ops, "gpu_w6ax", numpy_w6ax, raising=False)


def numpy_w6ax(x: Any, packed: Any, scales: Any, n: int, *, act_bits: int) -> Any:
    k = x.shape[1]
    if act_bits < 16:
        codes, act_scales = quantization.activations(x, act_bits=act_bits)
        x = codes[:, :k] * np.repeat(act_scales, 128, axis=1)[:, :k].astype(np.float64)
    w = _native.kernels.unpack_int6(packed, n, k).astype(np.float64)
    return (x @ (w * np.repeat(scales.T.astype(np.float64), 128, axis=1)[:, :k]).T).astype("f4")


def numpy_product(x: Any, w: Any, *, scheme: str) -> Any:
    if scheme == "w8a8":
        return x.astype(np.int32) @ w.astype(np.int32).T
    return (x.astype(np.float64) @ w.astype(np.float64).T).astype(np.float32)


def test_doctor_shows_devices_libraries_and_what_runs_where(two_gpus: None) -> None:
    findings = doctor.diagnose()
    assert finding("cuda", findings).value == "13.0 for 80,90a"
    assert "CUDA 13.1" in finding("driver", findings).value
    first, second = finding("gpu 0", findings), finding("gpu 1", findings)
    assert first.status == "ok" and "70.0 GB free of 80.0 GB, SM 1,980 MHz" in first.value
    assert second.status == "no" and "CMAKE_CUDA_ARCHITECTURES=75" in second.hint
    assert finding("peer access", findings).value == "not 1->0"
    assert "13.1.0, /lib/x.so (loaded)" in finding("cublaslt", findings).value
    assert finding("nccl", findings).hint == "pip install it"
    for scheme in devices.GPU_SCHEMES:
        assert finding(f"{scheme} on gpu", findings).status == "ok"
    assert "no GPU kernels" in finding("fp32 on gpu", findings).why
    assert doctor.unmet("cuda", findings) == []
    assert [f.name for f in doctor.unmet("nccl", findings)] == ["nccl"]


def test_a_wrong_product_on_the_gpu_is_found(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(x: Any, w: Any, *, scheme: str) -> Any:
        got = numpy_product(x, w, scheme=scheme)
        got[0, 0] += 1
        return got

    def wrong_w6ax(*args: Any, act_bits: int) -> Any:
        return numpy_w6ax(*args, act_bits=act_bits) * (1.001 if act_bits == 8 else 1)

    monkeypatch.setattr(_native.ops, "gpu_gemm", wrong, raising=False)
    monkeypatch.setattr(_native.ops, "gpu_w6ax", wrong_w6ax, raising=False)
    findings = doctor.diagnose()
    for scheme in ("fp16", "w8a16", "w8a8", "w6ax"):
        assert finding(f"{scheme} on gpu", findings).status == "no"
    with pytest.raises(AssertionError, match="of the largest value"):
        self_test.gpu_self_test("w8a8")


def test_a_driver_that_breaks_leaves_the_rest_of_the_report(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise DeviceError("CUDA: unknown error")

    monkeypatch.setattr(_native, "gpus", broken)
    findings = doctor.diagnose()
    assert finding("gpus", findings).value == "CUDA: unknown error"
    assert [f.name for f in doctor.unmet("cuda", findings)] == ["gpus"]
    assert envelope.gpu_names() == []


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("90a", "9.0", True),
        ("90a", "10.0", False),
        ("80,90a", "8.6", True),
        ("80", "9.0", True),
        ("80,90a", "7.5", False),
        ("", "9.0", False),
    ],
)
def test_code_for_a_gpu(architectures: str, capability: str, expected: bool) -> None:
    assert gpu_probes.has_code_for(architectures, capability) is expected


def test_the_names_of_gpu_schemes_are_schemes() -> None:
    from flexq_ft.converter.options import DTYPES, SCHEMES

    assert set(devices.GPU_SCHEMES) < set(SCHEMES) and set(devices.GPU_DTYPES) < set(DTYPES)
    assert set(self_test._GPU_CASES) == set(devices.GPU_SCHEMES)
    assert gpu_state.slowdowns_of(0) == ()
