from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32, float16 or bfloat16 (ml_dtypes)
FloatArray = NDArray[Any]

def rms_norm(x: FloatArray, weight: FloatArray, eps: float) -> FloatArray: ...
def layer_norm(x: FloatArray, weight: FloatArray, bias: FloatArray, eps: float) -> FloatArray: ...
def add_residual(
    x: FloatArray, y: NDArray[np.float32], bias: NDArray[np.float32] | None = None
) -> None: ...
def activation(x: NDArray[np.float32], name: str, *, dtype: str, gated: bool) -> FloatArray: ...
def embedding(
    ids: NDArray[np.int32],
    table: FloatArray,
    positions: NDArray[np.int32] | None = None,
    positional: FloatArray | None = None,
) -> FloatArray: ...
def rope_table(
    *,
    head_dim: int,
    positions: int,
    theta: float = 10000.0,
    type: str = "default",
    factor: float = 1.0,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_max_positions: int = 8192,
) -> NDArray[np.float32]: ...
def rope_append(
    qkv: NDArray[np.float32],
    *,
    heads: int,
    k: FloatArray,
    v: FloatArray,
    rope: NDArray[np.float32] | None = None,
    positions: NDArray[np.int32],
    offsets: NDArray[np.int32],
    context: NDArray[np.int32],
    pages: NDArray[np.int32],
) -> FloatArray: ...
def attention(
    q: FloatArray,
    *,
    k: FloatArray,
    v: FloatArray,
    positions: NDArray[np.int32],
    offsets: NDArray[np.int32],
    context: NDArray[np.int32],
    pages: NDArray[np.int32],
) -> FloatArray: ...
def pack_panel(
    parts: Sequence[NDArray[Any]], *, dtype: str, row_major_nk: bool = True
) -> NDArray[np.uint8]: ...
def pack_panel_pairs(parts: Sequence[NDArray[np.int8]]) -> NDArray[np.uint8]: ...
def gemm_float(
    x: FloatArray,
    panel: NDArray[np.uint8],
    *,
    n: int,
    k: int,
    dtype: str,
    bias: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
def gemm_w8a16(
    x: FloatArray,
    panel: NDArray[np.uint8],
    *,
    n: int,
    k: int,
    scale: NDArray[np.float32],
    bias: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
def gemm_w8a8(
    codes: NDArray[np.int8],
    act_scale: NDArray[np.float32],
    panel: NDArray[np.uint8],
    *,
    n: int,
    k: int,
    scale: NDArray[np.float32],
    bias: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
def repack_rows(
    dst: NDArray[Any],
    src: NDArray[Any],
    *,
    row: int = 0,
    column: int = 0,
    row_major_nk: bool = True,
) -> None: ...
def random_fill(
    count: int, *, dtype: str, key: int, center: float = 0.0, spread: float = 1.0, first: int = 0
) -> NDArray[Any]: ...
def sample(
    logits: NDArray[np.float32],
    *,
    history: Sequence[int] = ...,
    generated: int = 0,
    model_end_ids: Sequence[int] = ...,
    **fields: Any,
) -> tuple[int, float]: ...
def validate_sampling(vocab_size: int, **fields: Any) -> None: ...
def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...
def philox_uniform(seed: int, index: int) -> float: ...
def set_threads(threads: int) -> None: ...
