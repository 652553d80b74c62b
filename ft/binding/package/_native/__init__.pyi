from typing import NoReturn, TypedDict

import numpy as np
from numpy.typing import NDArray

from flexq_ft._native import kernels as kernels

__version__: str
ERROR_EXIT_CODES: dict[str, int]

class _BuildInfo(TypedDict):
    compiler: str
    openmp: bool
    isas: list[str]
    mpi_library: str | None
    cuda: bool
    commit: str

def build_info() -> _BuildInfo: ...

class DeviceComm:
    """The collectives among ranks. All ranks make the same calls in the same order.

    MPI ends at interpreter exit, which waits for every rank: a rank that stops on an error calls
    `abort` with its exit code, or the others wait for ever.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def barrier(self) -> None: ...
    def broadcast(self, data: bytes, root: int = 0) -> bytes: ...
    def all_reduce(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def all_gather(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def abort(self, code: int) -> NoReturn: ...

def single_comm() -> DeviceComm: ...
def mpi_comm() -> DeviceComm: ...
