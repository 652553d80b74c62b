"""Clocks, temperature, power and other processes of GPUs, read only; no setting is ever changed.

Through nvidia-ml-py where it is installed, else nvidia-smi. Either may be absent, or refuse one
number or another: what is not known is None.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

# Reasons that make a GPU slower than its clocks promise; idling and application clocks do not.
_SLOWDOWNS = {
    0x0000000000000004: "power cap",
    0x0000000000000008: "hardware slowdown",
    0x0000000000000020: "software thermal slowdown",
    0x0000000000000040: "hardware thermal slowdown",
    0x0000000000000080: "power brake",
}
_FIELDS = {
    "name": "name", "uuid": "uuid", "driver": "driver_version", "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem", "sm_max_mhz": "clocks.max.sm", "temperature_c": "temperature.gpu",
    "power_w": "power.draw", "power_limit_w": "power.limit",
    "utilization_percent": "utilization.gpu", "slowdowns": "clocks_throttle_reasons.active",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """One GPU at one moment. pids: processes that compute on it, as this container sees them."""

    name: str | None = None
    uuid: str | None = None
    driver: str | None = None
    sm_mhz: float | None = None
    memory_mhz: float | None = None
    sm_max_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    utilization_percent: float | None = None
    slowdowns: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        return {**fields, "slowdowns": list(self.slowdowns), "pids": list(self.pids)}


def read_states(gpus: Sequence[int]) -> list[GpuState]:
    """Of these GPUs, numbered as CUDA numbers them; empty states where nothing can be read."""
    names = [_system_name(gpu) for gpu in gpus]
    for read in (_by_nvml, _by_nvidia_smi):
        try:
            return [read(name) for name in names]
        except Exception:  # absent, or refused: the next source, or no numbers
            continue
    return [GpuState() for _ in gpus]


def _system_name(gpu: int) -> str:
    """The driver's index or UUID: CUDA_VISIBLE_DEVICES renumbers for CUDA alone."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return visible[gpu] if visible != [""] and gpu < len(visible) else str(gpu)


@contextmanager
def free_memory(gpus: Sequence[int]) -> Iterator[Callable[[], list[int]]]:
    """A call for the free bytes of each GPU, which makes no context on any.

    Raises ImportError without nvidia-ml-py, and NVML's own errors where there is no driver.
    """
    nvml: Any = import_module("pynvml")
    nvml.nvmlInit()
    try:
        handles = [_nvml_handle(nvml, _system_name(gpu)) for gpu in gpus]
        yield lambda: [int(nvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles]
    finally:
        nvml.nvmlShutdown()


def _nvml_handle(nvml: Any, name: str) -> Any:
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)


def _by_nvml(name: str) -> GpuState:
    nvml: Any = import_module("pynvml")
    nvml.nvmlInit()
    try:
        return _nvml_state(nvml, _nvml_handle(nvml, name))
    finally:
        nvml.nvmlShutdown()


def _nvml_state(nvml: Any, handle: Any) -> GpuState:
    def ask(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except nvml.NVMLError:
            return None

    def number(call: Callable[[], Any], scale: float = 1.0) -> float | None:
        value = ask(call)
        return None if value is None else float(value) * scale

    processes = ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    mask = ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0
    rates = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    sm, memory = nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM
    return GpuState(
        name=_text(ask(lambda: nvml.nvmlDeviceGetName(handle))),
        uuid=_text(ask(lambda: nvml.nvmlDeviceGetUUID(handle))),
        driver=_text(ask(nvml.nvmlSystemGetDriverVersion)),
        sm_mhz=number(lambda: nvml.nvmlDeviceGetClockInfo(handle, sm)),
        memory_mhz=number(lambda: nvml.nvmlDeviceGetClockInfo(handle, memory)),
        sm_max_mhz=number(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, sm)),
        temperature_c=number(
            lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
        ),
        power_w=number(lambda: nvml.nvmlDeviceGetPowerUsage(handle), 1e-3),
        power_limit_w=number(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle), 1e-3),
        utilization_percent=None if rates is None else float(rates.gpu),
        slowdowns=slowdowns_of(int(mask)),
        pids=tuple(sorted(process.pid for process in processes)),
    )


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def slowdowns_of(mask: int) -> tuple[str, ...]:
    """The names of the bits that slow a GPU down."""
    return tuple(name for bit, name in _SLOWDOWNS.items() if mask & bit)


def _by_nvidia_smi(name: str) -> GpuState:
    (row,) = _ask_nvidia_smi("gpu", ",".join(_FIELDS.values()), name)
    texts = dict(zip(_FIELDS, row, strict=True))
    mask = texts.pop("slowdowns")
    values: dict[str, Any] = {
        key: (text or None) if key in ("name", "uuid", "driver") else _number(text)
        for key, text in texts.items()
    }
    pids = [int(row[0]) for row in _ask_nvidia_smi("compute-apps", "pid", name)]
    return GpuState(
        **values,
        slowdowns=slowdowns_of(int(mask, 16)) if mask.startswith("0x") else (),
        pids=tuple(sorted(pids)),
    )


def _ask_nvidia_smi(what: str, fields: str, name: str) -> list[list[str]]:
    program = shutil.which("nvidia-smi")
    if program is None:
        raise FileNotFoundError("nvidia-smi")
    done = subprocess.run(
        [program, f"--query-{what}={fields}", "--format=csv,noheader,nounits", f"--id={name}"],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return [[part.strip() for part in line.split(",")] for line in lines]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]", "[Not Supported]"
        return None
