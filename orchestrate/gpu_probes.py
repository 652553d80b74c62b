"""doctor's findings about GPUs: devices, libraries, peer access, and what runs on them.

Each probe may raise; doctor turns that into a finding. `_native` is looked up at the call, so that
a build without the module still gives the rest of the report.
"""

from __future__ import annotations

import itertools
from typing import Any

from flexq_ft.orchestrate import envelope
from flexq_ft.orchestrate.devices import gpus, why_not_on_gpu
from flexq_ft.orchestrate.finding import Finding
from flexq_ft.orchestrate.gpu_state import GpuState, read_states

BUILD_HINT = "pip install . --config-settings=cmake.define.FLEXQ_FT_CUDA=ON"


def native() -> Any:
    from flexq_ft import _native

    return _native


def is_built() -> bool:
    return bool(envelope.build_info().get("cuda"))


def cuda() -> Finding:
    """The toolkit that this build was made with, and the GPUs that it was made for."""
    text = envelope.cuda_text(envelope.build_info())
    if text is not None:
        return Finding("gpu", "cuda", "ok", text)
    why = "this build has the CPU engine only; every scheme runs on it"
    return Finding("gpu", "cuda", "no", "not built", why, BUILD_HINT)


def devices() -> Finding:
    found = gpus()
    if found:
        return Finding("gpu", "gpus", "ok", f"{len(found)} that this build can use")
    return Finding("gpu", "gpus", "no", "none", native().no_gpu_cause())


def device(gpu: int) -> Finding:
    """One GPU: what it is, and whether this build has code for it."""
    info = gpus()[gpu]
    capability = str(info["compute_capability"])
    architectures = str(envelope.build_info().get("cuda_architectures", ""))
    (state,) = read_states([gpu])
    free, total = native().gpu_free_bytes(gpu), info["total_bytes"]
    value = (
        f"{info['name']}, compute capability {capability}, {info['multiprocessors']} SMs, "
        f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB{_clocks(state)}"
    )
    if has_code_for(architectures, capability):
        return Finding("gpu", f"gpu {gpu}", "ok", value)
    why = f"this build has code for {architectures} only"
    number = capability.replace(".", "")
    hint = f"{BUILD_HINT} --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES={number}"
    return Finding("gpu", f"gpu {gpu}", "no", value, why, hint)


def _clocks(state: GpuState) -> str:
    parts = [
        (state.sm_mhz, "SM {:,.0f} MHz"),
        (state.memory_mhz, "memory {:,.0f} MHz"),
        (state.temperature_c, "{:.0f} °C"),
        (state.power_w, "{:.0f} W"),
    ]
    known = [pattern.format(value) for value, pattern in parts if value is not None]
    slow = [f"slowed down: {', '.join(state.slowdowns)}"] if state.slowdowns else []
    return "".join(f", {part}" for part in [*known, *slow])


def has_code_for(architectures: str, capability: str) -> bool:
    """`80` holds for 8.0 and, as PTX, for what came later; `90a` for 9.0 alone."""
    number = int(capability.replace(".", ""))
    for name in filter(None, architectures.split(",")):
        digits = int("".join(filter(str.isdigit, name)))
        if digits == number or (digits < number and name[-1].isdigit()):
            return True
    return False


def peer_access() -> Finding:
    """Between every two GPUs: tensor-parallel ranks exchange without it through the host."""
    count = len(gpus())
    if count < 2:
        return Finding("gpu", "peer access", "info", "fewer than two GPUs")
    pairs = list(itertools.permutations(range(count), 2))
    closed = [pair for pair in pairs if not native().gpu_peer_access(*pair)]
    if not closed:
        return Finding("gpu", "peer access", "ok", f"between all {count} GPUs")
    shown = ", ".join(f"{a}->{b}" for a, b in closed)
    return Finding("gpu", "peer access", "info", f"not {shown}", "these go through the host")


def cublaslt() -> Finding:
    if not is_built():
        return Finding("gpu", "cublaslt", "no", "not used", "this build has no GPU code")
    info = native().cublaslt_info()
    return Finding("gpu", "cublaslt", "ok", f"{info['version']}, {info['path']} (loaded)")


def nccl() -> Finding:
    if not is_built():
        return Finding("gpu", "nccl", "no", "not used", "ranks on CPUs reduce through MPI")
    info = native().nccl_info()
    return Finding("gpu", "nccl", "ok", f"{info['version']}, {info['path']} (loaded)")


def scheme(name: str) -> Finding:
    """Whether the first GPU runs a scheme, and whether its product equals the CPU twin's."""
    from flexq_ft.orchestrate.self_test import gpu_self_test

    label = f"{name} on gpu"
    why = why_not_on_gpu(name, name if name == "fp32" else None)
    if why:
        return Finding("schemes", label, "no", "runs on the CPU only", why)
    error = gpu_self_test(name)
    return Finding("schemes", label, "ok", f"self-test within {error:.0e} of the CPU's product")
