"""The processes of a tensor-parallel run, over mpi4py: who is here, what is next, how all end.

Control only. The tensors of the ranks go through `comm()` (`_native.DeviceComm`): on CPUs the MPI
that is started here, on GPUs NCCL, whose id travels over it.
"""

from __future__ import annotations

import json
import time
from typing import Any

from flexq_ft.errors import DeviceError

# A rank that waits for rank 0's next call first polls, so that a decode step loses nothing, then
# sleeps, so that a chat that waits for its user costs no core.
_POLL_SECONDS = 0.01
_SLEEP_SECONDS = 0.002


class Ranks:
    """MPI's world. Raises DeviceError where MPI cannot be used."""

    def __init__(self) -> None:
        from flexq_ft import _native

        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise DeviceError(
                "MPI is not available: mpi4py cannot be used",
                cause=str(error),
                hint="pip install 'flexq-ft[mpi]'",
            ) from error
        self._world = MPI.COMM_WORLD
        self._comms: dict[str, Any] = {"cpu": _native.mpi_comm()}
        self.rank: int = self._world.rank
        self.size: int = self._world.size
        here = self._world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank: int = here.rank  # among the ranks of this host
        self.local_size: int = here.size
        here.Free()

    def comm(self, device: str, gpu: int) -> Any:
        """The collectives on a device, made at the first call; all ranks make it together.

        The GPU becomes the calling thread's: NCCL binds its ranks to the current one.
        """
        from flexq_ft import _native

        if device not in self._comms:
            native: Any = _native
            native.use_gpu(gpu)
            unique_id = self._world.bcast(native.nccl_unique_id() if self.rank == 0 else None)
            self._comms[device] = native.nccl_comm(self.rank, self.size, unique_id)
        return self._comms[device]

    def broadcast(self, value: Any = None) -> Any:
        """A JSON value of rank 0 to all."""
        data = bytearray(json.dumps(value).encode()) if self.rank == 0 else bytearray()
        length = bytearray(len(data).to_bytes(8, "little"))
        self._wait(self._world.Ibcast(length))
        if self.rank != 0:
            data = bytearray(int.from_bytes(length, "little"))
        self._world.Bcast(data)
        return json.loads(data)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's JSON value on every rank, in rank order."""
        return [json.loads(one) for one in self._world.allgather(json.dumps(value))]

    def abort(self, code: int) -> None:
        """Ends every rank at once; the launcher returns this code."""
        self._world.Abort(code)

    def _wait(self, request: Any) -> None:
        started = time.monotonic()
        while not request.Test():
            late = time.monotonic() - started > _POLL_SECONDS
            time.sleep(_SLEEP_SECONDS if late else 0)
