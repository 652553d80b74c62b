"""One rank of test_mpi_comm.py: python comm_rank.py CASE OUT. Writes OUT/{rank}.npz."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from flexq_ft import _native

# Both sides of the size at which all_reduce changes its way of moving data (8192 values), and
# fewer values than ranks.
COUNTS = (1, 3, 7, 8191, 8192, 8193, 100_003)


def values(rank: int, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Of very different sizes, so that another order of adding gives other bits."""
    rng = np.random.default_rng(1000 * rank + count)
    return (rng.standard_normal(count) * 10.0 ** rng.integers(-4, 5, count)).astype(np.float32)


def collectives(comm: _native.DeviceComm) -> dict[str, Any]:
    found: dict[str, Any] = {"place": np.array([comm.rank, comm.size])}
    for count in COUNTS:
        found[f"sum.{count}"] = comm.all_reduce(values(comm.rank, count))
        found[f"all.{count}"] = comm.all_gather(values(comm.rank, count))
    for root in range(comm.size):
        for length in (0, 1, 70_001):
            mine = bytes([comm.rank + 1]) * length if comm.rank == root else b"other"
            found[f"from.{root}.{length}"] = np.frombuffer(comm.broadcast(mine, root), np.uint8)
    return found


def main() -> None:
    case, out = sys.argv[1], Path(sys.argv[2])
    if case == "mpi4py":
        from mpi4py import MPI

        comm = _native.mpi_comm()
        found = collectives(comm)
        found["mpi4py"] = np.array([MPI.COMM_WORLD.allreduce(comm.rank + 1)])
    elif case == "abort":
        comm = _native.mpi_comm()
        if comm.rank == 1:
            comm.abort(5)
        comm.barrier()
        return
    else:
        comm = _native.mpi_comm()
        found = collectives(comm)
    np.savez(out / f"{comm.rank}.npz", **found)


if __name__ == "__main__":
    main()
