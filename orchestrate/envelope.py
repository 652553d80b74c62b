"""The JSON envelope of every verb (configs/schemas/envelope.json), and what this build is."""

from __future__ import annotations

import os
import platform
import shlex
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Any


def build_info() -> dict[str, Any]:
    """What `_native` says about itself; empty values where it is absent, never an exception."""
    try:
        native = import_module("flexq_ft._native")
        info: dict[str, Any] = dict(native.build_info()) if hasattr(native, "build_info") else {}
        info["version"] = native.__version__
    except Exception as error:  # a broken build must still be able to say so
        return {"version": "unknown", "error": f"{type(error).__name__}: {error}"}
    return info


def version_line() -> str:
    """As `flexq-ft 0.1.0 (commit 1a2b3c4, CUDA: not built)`."""
    info = build_info()
    commit = info.get("commit") or "unknown"
    cuda = cuda_text(info) or "not built"
    return f"flexq-ft {info['version']} (commit {commit}, CUDA: {cuda})"


def cuda_text(info: dict[str, Any]) -> str | None:
    """As `13.0 for 80,90a`, of build_info(); None for a build without CUDA."""
    if not info.get("cuda"):
        return None
    native = import_module("flexq_ft._native")
    return f"{native.cuda_versions()['runtime']} for {info.get('cuda_architectures', '')}"


def gpu_names() -> list[str]:
    """Of the GPUs that this build can use; none where they cannot be asked for."""
    try:
        return [str(gpu["name"]) for gpu in import_module("flexq_ft._native").gpus()]
    except Exception:  # a result must be recorded whatever the driver says
        return []


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Cores that this process may use (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0))


def environment() -> dict[str, Any]:
    """The machine and the build, as every result records them."""
    info = build_info()
    return {
        "version": info["version"],
        "commit": info.get("commit") or None,
        "compiler": info.get("compiler"),
        "isas": list(info.get("isas", [])),
        "cuda": cuda_text(info),
        "gpus": gpu_names(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": cpu_name(),
        "cores": available_cores(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def envelope(
    schema: str,
    *,
    argv: Sequence[str],
    config: dict[str, Any],
    results: Any,
    warnings: Sequence[str],
    error: dict[str, Any] | None,
) -> dict[str, Any]:
    """One document; error is null if all went well."""
    return {
        "schema": schema,
        "command": shlex.join(["flexq-ft", *argv]),
        "environment": environment(),
        "config": config,
        "results": results,
        "warnings": list(warnings),
        "error": error,
    }
