from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32, float16 or bfloat16 (ml_dtypes)
FloatArray = NDArray[Any]
# What a linear gave: float32, or int32 sums with the scales that are still to be applied
ProductArray = NDArray[np.float32] | NDArray[np.int32]
# (values, codes or None, scales or None)
LinearInput = tuple[FloatArray, NDArray[np.int8] | None, NDArray[np.float32] | None]

def rms_norm(x: FloatArray, weight: FloatArray, eps: float) -> FloatArray: ...
def layer_norm(x: FloatArray, weight: FloatArray, bias: FloatArray, eps: float) -> FloatArray: ...
def residual_norm(
    residual: FloatArray,
    y: ProductArray | None,
    *,
    act_scale: NDArray[np.float32] | None = None,
    weight_scale: NDArray[np.float32] | None = None,
    bias: NDArray[np.float32] | None = None,
    weight: FloatArray,
    norm_bias: FloatArray | None = None,
    eps: float,
    act_bits: int = 16,
    group: int = 0,
) -> LinearInput: ...
def finish_product(
    y: ProductArray,
    *,
    act_scale: NDArray[np.float32] | None = None,
    weight_scale: NDArray[np.float32] | None = None,
    bias: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
def quantize(
    x: FloatArray, *, act_bits: int, group: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]: ...
def fused_activation(
    x: ProductArray,
    name: str,
    *,
    dtype: str,
    gated: bool,
    act_scale: NDArray[np.float32] | None = None,
    weight_scale: NDArray[np.float32] | None = None,
    bias: NDArray[np.float32] | None = None,
    act_bits: int = 16,
    group: int = 0,
) -> LinearInput: ...
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
def pad_columns(x: NDArray[np.float32], *, columns: int) -> NDArray[np.float32]: ...
def gather_columns(parts: NDArray[np.float32], *, columns: int) -> NDArray[np.float32]: ...
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
    qkv: ProductArray,
    *,
    act_scale: NDArray[np.float32] | None = None,
    weight_scale: NDArray[np.float32] | None = None,
    bias: NDArray[np.float32] | None = None,
    heads: int,
    k: FloatArray,
    v: FloatArray,
    rope: NDArray[np.float32] | None = None,
    positions: NDArray[np.int32],
    offsets: NDArray[np.int32],
    context: NDArray[np.int32],
    pages: NDArray[np.int32],
) -> FloatArray: ...
def fused_attention(
    q: FloatArray,
    *,
    k: FloatArray,
    v: FloatArray,
    positions: NDArray[np.int32],
    offsets: NDArray[np.int32],
    context: NDArray[np.int32],
    pages: NDArray[np.int32],
    act_bits: int,
    group: int,
) -> LinearInput: ...
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
def gpu_gemm(x: NDArray[Any], w: NDArray[Any], *, scheme: str, table: str = "") -> NDArray[Any]: ...
def gpu_gemm_choice(*, scheme: str, dtype: str, m: int, n: int, k: int, table: str = "") -> str: ...
def gpu_gemm_note(*, table: str = "") -> str: ...
def gpu_w6ax(
    x: NDArray[Any],
    codes: NDArray[np.uint8],
    scales: NDArray[np.float16],
    n: int,
    *,
    act_bits: int,
    bias: NDArray[np.float32] | None = None,
    rounded: bool = False,
) -> NDArray[Any]: ...
def gpu_w6ax_choice(*, m: int, n: int, k: int, act_bits: int) -> str: ...
def skinny_gemm(
    x: NDArray[Any],
    w: NDArray[Any],
    *,
    scheme: str,
    config: tuple[int, int, int] | None = None,
) -> NDArray[Any]: ...
def skinny_configs(
    *, scheme: str, dtype: str, m: int, n: int, k: int
) -> list[tuple[int, int, int]]: ...
def skinny_default(
    *, scheme: str, dtype: str, m: int, n: int, k: int, multiprocessors: int
) -> tuple[int, int, int]: ...
def sample(
    logits: NDArray[np.float32],
    *,
    history: Sequence[int] = ...,
    generated: int = 0,
    model_end_ids: Sequence[int] = ...,
    **fields: Any,
) -> tuple[int, float]: ...
def sample_on_device(
    logits: NDArray[np.float32],
    histories: Sequence[Sequence[int]],
    params: Sequence[dict[str, Any]],
    *,
    prompts: Sequence[int] | None = None,
    row_slots: Sequence[int] | None = None,
    model_end_ids: Sequence[int] = ...,
    max_len: int = 256,
    repeat: int = 1,
) -> dict[str, Any]: ...
def throw_sampling_fault(
    status: int, token: int, logprob: float, vocab_size: int, **fields: Any
) -> None: ...
def validate_sampling(vocab_size: int, **fields: Any) -> None: ...
def philox_uniform(seed: int, index: int) -> float: ...
def use_device(name: str) -> None: ...
def device() -> str: ...
def set_threads(threads: int) -> None: ...
