"""Starting ranks in tests: `run_ranks(2, [...])` and the mark `needs_mpi`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from flexq_ft import _native
from flexq_ft.orchestrate.mpirun import find_mpirun

__all__ = ["needs_mpi", "run_ranks"]

MPIRUN = find_mpirun()

_MISSING = (
    "mpirun is not installed"
    if MPIRUN is None
    else "libflexq_ft_mpi was not built"
    if _native.build_info()["mpi_library"] is None
    else ""
)

needs_mpi = pytest.mark.skipif(bool(_MISSING), reason=_MISSING or "MPI is there")


def run_ranks(
    ranks: int,
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 180.0,
) -> subprocess.CompletedProcess[str]:
    """Runs command on so many ranks, more than cores if need be. The caller checks returncode."""
    assert MPIRUN is not None, _MISSING
    return subprocess.run(
        [MPIRUN, "--bind-to", "none", "--map-by", ":OVERSUBSCRIBE", "-n", str(ranks)]
        + [str(word) for word in command],
        cwd=cwd,
        env={
            **os.environ,
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            **(env or {}),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
