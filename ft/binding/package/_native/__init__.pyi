from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, TypedDict, final

import numpy as np
from numpy.typing import NDArray

from flexq_ft._native import kernels as kernels
from flexq_ft._native import ops as ops

__version__: str
ERROR_EXIT_CODES: dict[str, int]

class _BuildInfo(TypedDict):
    compiler: str
    openmp: bool
    isas: list[str]
    mpi_library: str | None
    cuda: bool
    cuda_architectures: str
    commit: str

class _Gpu(TypedDict):
    name: str
    compute_capability: str
    multiprocessors: int
    l2_bytes: int
    total_bytes: int

class _CudaVersions(TypedDict):
    driver: str
    runtime: str

def build_info() -> _BuildInfo: ...
def gpus() -> list[_Gpu]: ...
def use_gpu(gpu: int) -> None: ...
def gpu_free_bytes(gpu: int) -> int: ...
def gpu_peer_access(from_gpu: int, to_gpu: int) -> bool: ...
def no_gpu_cause() -> str: ...
def cuda_versions() -> _CudaVersions: ...
def measure_read_bandwidth(
    *, device: str = "cpu", gpu: int = 0, threads: int = 0, bytes: int = 0, passes: int = 30
) -> float:
    """Bytes per second: the median of passes that each read a whole buffer once."""

class _LibraryInfo(TypedDict):
    path: str
    version: str

class _GemmRow(TypedDict):
    scheme: str
    dtype: str
    n: int
    k: int
    m: int
    kernel: str
    config: str
    us: float
    note: str

class _GemmTime(TypedDict):
    kernel: str
    config: str
    note: str
    us: float
    us_p10: float
    us_p90: float

class _GemmResult(_GemmRow):
    returned: int
    skinny: int
    refused: list[str]
    finalists: list[_GemmTime]

def cublaslt_info() -> _LibraryInfo: ...
def built_in_gemm_table(gpu: str) -> str: ...
def gemm_table_rows(text: str) -> list[_GemmRow]: ...
def merged_gemm_tables(older: str, newer: str) -> str: ...
def tune_gemm(
    weights: Sequence[dict[str, Any]],
    *,
    table: str = "",
    observe: Callable[[list[_GemmResult], str], None],
    heuristics: int = 64,
    cold_bytes: int = ...,
    replays: int = 20,
) -> str: ...

class _W6axTime(TypedDict):
    implementation: str
    config: str
    note: str
    us: float
    p10: float
    p90: float
    full_edges_us: float | None
    sustained_us: float | None

class _W6axRow(TypedDict):
    m: int
    n: int
    k: int
    act_bits: int
    times: list[_W6axTime]
    refused: list[str]
    heuristics: int

def measure_w6ax(
    *,
    m: int,
    n: int,
    k: int,
    act_bits: int,
    implementations: Sequence[str],
    heuristics: int = 64,
    cold_bytes: int = ...,
    replays: int = 30,
    sustained_s: float = 0.0,
) -> _W6axRow: ...
def explain_w6ax(*, m: int, n: int, k: int, act_bits: int) -> str:
    """The kernel of the current GPU for a product, why, and what else there is; a line each."""

def measure_quantizers(
    *, m: int, k: int, act_bits: int, launches: int = 200, replays: int = 20
) -> dict[str, float]: ...

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
def nccl_unique_id() -> bytes:
    """A new id, on one rank, which gives it to the others."""

def nccl_comm(rank: int, size: int, unique_id: bytes, host: DeviceComm | None = None) -> DeviceComm:
    """The collectives among GPUs, one a rank; `host` (MPI's by default) has those in host memory.

    An engine meets the other ranks on its own GPU. Raises DeviceError where NCCL is not found.
    """

class _NcclInfo(TypedDict):
    path: str
    version: str

def nccl_info() -> _NcclInfo:
    """The NCCL that this process has opened. Raises DeviceError where there is none."""

class _StepNode(TypedDict):
    name: str
    layer: int
    ms: float
    bytes: int

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
        lm_head: str | None = None,
        max_len: int = 0,
        max_batch: int = 8,
        prefill_tokens: int = 0,
        kv_tokens: int = 0,
        threads: int = 0,
        comm: DeviceComm | None = None,
        device: str = "cpu",
        gpu: int = 0,
        graphs: bool = True,
        step_kernel: str = "auto",
        synthetic_weights: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """progress(done, total): bytes of the weight files, after every block that was read. With
        synthetic_weights no file is read, and model_dir may be an INI that describes a model.
        step_kernel: auto, on or off: whether decode steps of a GPU run as one kernel. lm_head:
        fp16, w8 or w6; another than the folder's with synthetic_weights only."""

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
    def take_step_times(self) -> list[float]: ...
    def drop_graphs(self) -> None: ...
    def step_profile(self, batch: int, context: int, tokens: int = 1) -> list[_StepNode]: ...
    def forward(self, ids: Sequence[int]) -> NDArray[np.float32]: ...
    def score(
        self, ids: Sequence[int], first: int = 1
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
    def score_batch(
        self, texts: Sequence[Sequence[int]], first: Sequence[int]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]: ...
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
    def lm_head(self) -> str: ...
    @property
    def policy(self) -> dict[str, Any] | None: ...
    @property
    def max_len(self) -> int: ...
    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds: max_batch x max_len, or what fits into memory."""

    @property
    def max_batch(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def gemm_note(self) -> str:
        """On a GPU: which measured choices of products are in use; empty on the CPU."""

    @property
    def gemm_choices(self) -> list[str]:
        """A w6ax model on a GPU: the kernel of each product and why, a line each; else empty."""

    @property
    def step_note(self) -> str:
        """On a GPU: which decode steps run as one kernel, or why none; empty on the CPU."""

    @property
    def step_kernel_batch(self) -> int:
        """Sequences of the largest decode step that runs as one kernel; 0: none does."""

    @property
    def threads(self) -> int: ...
    def memory(self) -> dict[str, int]: ...

def peak_resident_bytes() -> int: ...
def usable_cores() -> int: ...
def available_memory() -> int: ...
def read_ini(path: str) -> dict[str, dict[str, str]]: ...
def read_json(path: str) -> Any: ...
def open_model_folder(path: str) -> ModelFolder: ...

@final
class Policy:
    def __init__(self) -> None: ...
    @staticmethod
    def from_dict(policy: dict[str, Any]) -> Policy: ...
    def to_dict(self) -> dict[str, Any]: ...
    def act_bits(self, layer: int, linear: str) -> int: ...
    def check(self, config: ModelConfig) -> None: ...
    @property
    def name(self) -> str: ...

@final
class ModelConfig:
    @property
    def name(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def inter_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def norm(self) -> str: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def activation(self) -> str: ...
    @property
    def gated_ffn(self) -> bool: ...
    @property
    def rope(self) -> dict[str, Any] | None: ...
    @property
    def tie_word_embeddings(self) -> bool: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def dense_bias(self) -> bool: ...
    @property
    def ffn_bias(self) -> bool: ...
    @property
    def sliding_window(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_ids(self) -> list[int]: ...

@final
class ShardRanges:
    @property
    def heads(self) -> list[list[int]]: ...
    @property
    def kv_heads(self) -> list[list[int]]: ...
    @property
    def inter(self) -> list[list[int]]: ...

@final
class FileEntry:
    @property
    def shape(self) -> list[int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def xxh3_128(self) -> str: ...

@final
class ModelFolder:
    @property
    def path(self) -> str: ...
    @property
    def has_manifest(self) -> bool: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def scheme(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def lm_head(self) -> str: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def tp(self) -> int: ...
    @property
    def shards(self) -> ShardRanges: ...
    @property
    def cut_groups(self) -> list[str]: ...
    @property
    def files(self) -> dict[str, FileEntry]: ...
