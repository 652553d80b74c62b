"""Whether this process was started by mpirun or srun, and how it joins the other ranks.

Rank 0 runs the command; every other rank follows its calls (worker.follow) and then exits.
Nothing here touches MPI unless more than one process was started.
"""

from __future__ import annotations

import atexit
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexq_ft.errors import ConfigError

# (size, rank, who starts it). SLURM_NTASKS is also set outside of srun's steps, hence the step's.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "mpirun"),
    ("PMI_SIZE", "PMI_RANK", "mpirun"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun"),
)


@dataclass(frozen=True)
class World:
    """The processes that were started together."""

    rank: int
    size: int
    launcher: str


def world_from_environment(environ: Mapping[str, str] = os.environ) -> World | None:
    """None outside of mpirun and srun."""
    for size, rank, launcher in _LAUNCHERS:
        if environ.get(size, "").isdigit() and environ.get(rank, "").isdigit():
            return World(int(environ[rank]), int(environ[size]), launcher)
    return None


def check_world(world: World | None, tensor_parallel_size: int) -> None:
    """Raise ConfigError unless as many processes were started as were asked for."""
    if world is None or world.size == tensor_parallel_size:
        return
    tp = tensor_parallel_size
    command = _own_command()
    asked = f"--tp {tp} was asked for" if tp > 1 else "--tp is 1"
    if world.size == 1 or tp > 1:
        hint = f"{world.launcher} -n {tp} {command}"
        hint += f"         or, without {world.launcher}:  {command}"
    else:
        plain = re.sub(r" --tp[ =]\d+", "", command)
        hint = f"{world.launcher} -n {world.size} {plain} --tp {world.size}"
    raise ConfigError(
        f"this process is rank {world.rank} of {world.size}, but {asked} under {world.launcher}.",
        cause=f"{world.launcher} was started with -n {world.size}.",
        hint=hint,
        world_size=world.size,
        tensor_parallel_size=tp,
    )


def _own_command() -> str:
    program = Path(sys.argv[0])
    if program.suffix == ".py" and program.name != "__main__.py":
        return shlex.join(["python", *sys.argv])
    return shlex.join(["flexq-ft", *sys.argv[1:]])


_joined: Any = None


def join(tensor_parallel_size: int) -> Any:
    """The ranks on rank 0, None outside of mpirun; never returns on other ranks.

    Raises ConfigError if the world's size is not that of the run, DeviceError without MPI.
    """
    global _joined
    world = world_from_environment()
    check_world(world, tensor_parallel_size)
    if world is None or world.size == 1:
        return None
    if _joined is None:
        from flexq_ft.orchestrate import worker
        from flexq_ft.orchestrate.bootstrap import Ranks

        ranks = Ranks()
        if ranks.rank > 0:
            worker.follow_and_exit(ranks)
        _joined = ranks
        atexit.register(worker.leave, ranks)
    return _joined
