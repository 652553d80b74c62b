from collections.abc import Sequence
from typing import Any, Literal, NoReturn, TypedDict

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

class _LinearTrace(TypedDict):
    name: str
    x: NDArray[np.float32]
    y: NDArray[np.float32]

class Engine:
    """One model on one rank, driven step by step (ft/decoding/engine.h)."""

    def __init__(
        self,
        model_dir: str,
        *,
        dtype: str | None = None,
        scheme: str | None = None,
        policy: dict[str, Any] | None = None,
        max_len: int = 0,
        max_batch: int = 8,
        prefill_tokens: int = 512,
        threads: int = 0,
        comm: DeviceComm | None = None,
    ) -> None: ...
    def can_admit(self, prompt_tokens: int, max_tokens: int) -> bool: ...
    def admit(
        self,
        ids: Sequence[int],
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        min_tokens: int = 0,
        max_tokens: int = 128,
        seed: int = 0,
        ignore_eos: bool = False,
        end_ids: Sequence[int] = ...,
        stop_words: Sequence[Sequence[int]] = ...,
        bad_words: Sequence[Sequence[int]] = ...,
    ) -> int: ...
    def step(self) -> list[tuple[int, int, float, Literal["stop", "length"] | None]]: ...
    def release(self, slot: int) -> None: ...
    def forward(self, ids: Sequence[int]) -> NDArray[np.float32]: ...
    def score(self, ids: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
    def trace(self, ids: Sequence[int]) -> list[_LinearTrace]: ...
    def run_linear(self, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def folder(self) -> ModelFolder: ...
    @property
    def dtype(self) -> str: ...
    @property
    def scheme(self) -> str: ...
    @property
    def policy(self) -> dict[str, Any] | None: ...
    @property
    def max_len(self) -> int: ...
    @property
    def max_batch(self) -> int: ...
    @property
    def threads(self) -> int: ...
    def memory(self) -> dict[str, int]: ...

def peak_resident_bytes() -> int: ...
