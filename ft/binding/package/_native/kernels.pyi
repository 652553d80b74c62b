from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32, float16 or bfloat16 (ml_dtypes)
FloatArray = NDArray[Any]

def isas() -> list[str]: ...
def active_isa() -> str: ...
def set_isa(name: str) -> None: ...
def quantize_weight_int6(
    w: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float16]]: ...
def quantize_weight_int8(
    w: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]: ...
def quantize_activations(
    x: FloatArray, *, act_bits: int, group: int = 128
) -> tuple[NDArray[np.int8], NDArray[np.float32]]: ...
def packed_bytes(n: int, k: int) -> int: ...
def pack_int6(codes: NDArray[np.int8]) -> NDArray[np.uint8]: ...
def unpack_int6(packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.int8]: ...
def tile_scales(scales: NDArray[np.float16]) -> NDArray[np.float16]: ...
def group_sums(
    a_codes: NDArray[np.int8], packed: NDArray[np.uint8], n: int, k: int
) -> NDArray[np.int32]: ...
def gemm_w6ax(
    a_codes: NDArray[np.int8],
    a_scales: NDArray[np.float32],
    packed: NDArray[np.uint8],
    scales: NDArray[np.float16],
    n: int,
    k: int,
    bias: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
def gemm_w6a16(
    x: FloatArray,
    packed: NDArray[np.uint8],
    scales: NDArray[np.float16],
    n: int,
    k: int,
    bias: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...

# Arrays with __dlpack__, of the CPU or of one GPU.
def linear(
    y: Any,
    x: Any,
    codes: Any,
    scales: Any,
    n: int,
    k: int,
    *,
    act_bits: int,
    bias: Any | None = None,
    scratch: Any | None = None,
    workspace: Any | None = None,
    stream: int = 0,
) -> None: ...

# values [n, k] float16 or bfloat16, all arrays of one GPU.
def dequantize(values: Any, codes: Any, scales: Any, n: int, k: int, *, stream: int) -> None: ...
def linear_scratch_bytes(m: int, n: int, k: int, *, act_bits: int) -> int: ...
def linear_workspace_bytes(m: int, n: int, k: int, *, act_bits: int, device: int) -> int: ...
