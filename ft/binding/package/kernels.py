"""FlexQ's kernels: quantise, pack, multiply. `docs/numerics.md` has the arithmetic.

`pack` and `linear` are a whole layer, on NumPy arrays and on PyTorch tensors of the CPU or a GPU:

    packed = kernels.pack(layer.weight)
    y = kernels.linear(x, packed, act_bits=8, bias=layer.bias.float())
    w = kernels.dequantize(packed, dtype=torch.float16)  # what the layer's weight has become

The other functions are its parts, on NumPy arrays. Matrices are in Hugging Face order, weights
`[N, K]` and activations `[M, K]`; G = ceil(K / 128). NumPy arrays are converted to C order where
needed, never to another dtype: a wrong dtype or shape is a `ConfigError` that names both. Work of
the CPU is divided among OpenMP's threads; the GIL is released. A fork can do the CPU's work again,
and none of a GPU's: start such processes by `multiprocessing.set_start_method("spawn")`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexq_ft._native import kernels as _kernels
from flexq_ft.errors import ConfigError

__all__ = [
    "PackedWeight",
    "active_isa",
    "dequantize",
    "gemm_w6a16",
    "gemm_w6ax",
    "group_sums",
    "isas",
    "linear",
    "pack",
    "pack_int6",
    "packed_bytes",
    "quantize_activations",
    "quantize_weight_int6",
    "quantize_weight_int8",
    "set_isa",
    "tile_scales",
    "unpack_int6",
]


def isas() -> list[str]:
    """The builds of the kernels that this CPU can run, slowest first: portable, avx2, avx512."""
    return _kernels.isas()


def active_isa() -> str:
    """The build in use: the fastest, unless `set_isa` chose another."""
    return _kernels.active_isa()


def set_isa(name: str) -> None:
    """Use another build, to test or compare. Raises ConfigError if this CPU cannot run it."""
    _kernels.set_isa(name)


def quantize_weight_int6(
    w: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """FlexQ's weights: symmetric round-to-nearest in groups of 128 along K.

    w: `[N, K]` float32; the last group may be shorter. Returns codes `[N, K]` int8 in -32 … 31 and
    scales `[N, G]` float16 = fp16(max(max|w| / 31, 1e-5)); on disk scales are `[G, N]`.
    Raises WeightError with the row, column and value of the first element that is NaN, infinite or
    too large for a float16 scale.
    """
    return _kernels.quantize_weight_int6(w)


def quantize_weight_int8(
    w: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """One scale per output channel: codes `[N, K]` in -127 … 127, scales `[N]` = max|w| / 127.

    A row of zeros has scale 1. Raises WeightError as `quantize_weight_int6`, for NaN and infinity.
    """
    return _kernels.quantize_weight_int8(w)


def quantize_activations(
    x: NDArray[Any], *, act_bits: int, group: int = 128
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Dynamic quantisation per token and group of K; `group=K` gives one scale per token.

    x: `[M, K]` float32, float16 or bfloat16 (ml_dtypes). act_bits: 6 (-32 … 31) or 8 (-128 … 127).
    Returns codes int8 `[M, ceil(K / group) * group]`, the last group padded with zeros, and scales
    float32 `[M, ceil(K / group)]`: 0 for a group below 2^-100, NaN for one that is not finite.
    """
    return _kernels.quantize_activations(x, act_bits=act_bits, group=group)


def packed_bytes(n: int, k: int) -> int:
    """Bytes of a packed matrix: N padded to 16, K to 128, six bits per code."""
    return _kernels.packed_bytes(n, k)


def pack_int6(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Codes `[N, K]` int8 in -32 … 31 -> the bytes of layout frag16x128, format version 1."""
    return _kernels.pack_int6(codes)


def unpack_int6(packed: NDArray[np.uint8], *, n: int, k: int) -> NDArray[np.int8]:
    """The inverse of `pack_int6`: uint8 `[packed_bytes(n, k)]` -> codes `[n, k]`."""
    return _kernels.unpack_int6(packed, n, k)


def tile_scales(scales: NDArray[np.float16]) -> NDArray[np.float16]:
    """Scales `[G, N]`, as on disk, in the form of the GPU's kernels: `[ceil(N / 16), G, 16]`.

    Rows past N are zeros.
    """
    return _kernels.tile_scales(scales)


def group_sums(
    a_codes: NDArray[np.int8], packed: NDArray[np.uint8], *, n: int, k: int
) -> NDArray[np.int32]:
    """The exact int32 sums inside each group, `[M, n, G]`, from `gemm_w6ax`'s own inner loop.

    a_codes: `[M, G * 128]` int8, as `quantize_activations` writes them.
    """
    return _kernels.group_sums(a_codes, packed, n, k)


def gemm_w6ax(
    a_codes: NDArray[np.int8],
    a_scales: NDArray[np.float32],
    packed: NDArray[np.uint8],
    scales: NDArray[np.float16],
    *,
    n: int,
    k: int,
    bias: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """y `[M, n]` float32 = sum over groups of s_w * s_a * (int32 sum of the group) + bias.

    a_codes `[M, G * 128]` int8 and a_scales `[M, G]` float32 from `quantize_activations`; packed
    uint8 `[packed_bytes(n, k)]`; scales float16 `[G, n]`; bias float32 `[n]`.
    """
    return _kernels.gemm_w6ax(a_codes, a_scales, packed, scales, n, k, bias)


def gemm_w6a16(
    x: NDArray[Any],
    packed: NDArray[np.uint8],
    scales: NDArray[np.float16],
    *,
    n: int,
    k: int,
    bias: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Weight-only: y `[M, n]` float32 = x · (s_w * codes)ᵀ + bias, added in float32.

    x: `[M, k]` float32, float16 or bfloat16; the rest as in `gemm_w6ax`.
    """
    return _kernels.gemm_w6a16(x, packed, scales, n, k, bias)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight of a linear layer as `linear` takes it, on the device of its arrays.

    codes: uint8 `[packed_bytes(n, k)]`. scales: float16, `[G, n]`, or on a GPU
    `[ceil(n / 16), G, 16]` (`tile_scales`).
    """

    codes: Any
    scales: Any
    n: int
    k: int

    def __repr__(self) -> str:
        device = getattr(self.codes, "device", "cpu")
        return f"PackedWeight(n={self.n}, k={self.k}, device={device})"


def pack(weight: Any) -> PackedWeight:
    """Quantises and packs a weight `[N, K]`; the result lies where the weight lies.

    weight: float32 NumPy array, or PyTorch tensor of any float type and device (quantised in
    float32, on the CPU). Raises WeightError as `quantize_weight_int6`.
    """
    if isinstance(weight, np.ndarray):
        codes, scales = quantize_weight_int6(weight)
        n, k = weight.shape
        return PackedWeight(pack_int6(codes), np.ascontiguousarray(scales.T), n, k)
    torch = _torch_of(weight, "weight")
    packed = pack(weight.detach().to("cpu", torch.float32).numpy())
    scales = tile_scales(packed.scales) if weight.is_cuda else packed.scales
    return PackedWeight(
        torch.from_numpy(packed.codes).to(weight.device),
        torch.from_numpy(scales).to(weight.device),
        packed.n,
        packed.k,
    )


def dequantize(packed: PackedWeight, *, dtype: Any) -> Any:
    """The weight `[N, K]` that the codes stand for, each code * scale rounded once to `dtype`.

    dtype: float32, float16 or bfloat16 (of ml_dtypes), of the library of packed's arrays; on a GPU
    one of the two of 16 bits. What does not fit it is infinite. The result lies where packed lies,
    on a GPU as work of PyTorch's current stream.
    """
    _check_packed(packed)
    n, k = packed.n, packed.k
    on_numpy = isinstance(packed.codes, np.ndarray)
    name = np.dtype(dtype).name if on_numpy else str(dtype).removeprefix("torch.")
    if name not in ("float32", "float16", "bfloat16"):
        raise ConfigError(f"dtype is {name}, expected float32, float16 or bfloat16")
    if on_numpy:
        codes = unpack_int6(packed.codes, n=n, k=k)
        expected = [-(-k // 128), n]
        if list(np.shape(packed.scales)) != expected:
            raise ConfigError(
                f"scales has shape {list(np.shape(packed.scales))}, expected {expected}"
            )
        scales = np.repeat(packed.scales.T.astype(np.float32), 128, axis=1)[:, :k]
        with np.errstate(over="ignore"):
            return (codes * scales).astype(dtype)
    torch = _torch_of(packed.codes, "codes")
    if not packed.codes.is_cuda:
        arrays = PackedWeight(packed.codes.numpy(), packed.scales.numpy(), n, k)
        return torch.from_numpy(dequantize(arrays, dtype=np.float32)).to(dtype)
    values = torch.empty((n, k), dtype=dtype, device=packed.codes.device)
    stream = torch.cuda.current_stream(values.device).cuda_stream
    _kernels.dequantize(values, packed.codes, packed.scales, n, k, stream=stream)
    return values


def linear(x: Any, packed: PackedWeight, *, act_bits: int, bias: Any | None = None) -> Any:
    """y `[..., N]` = x `[..., K]` quantised to `act_bits`, times the weight, + bias.

    act_bits: 6 or 8; 16 leaves x as it is (weight-only), on a GPU float16 or bfloat16.
    x: float32, float16 or bfloat16, a NumPy array (bfloat16 of ml_dtypes) or a PyTorch tensor;
    packed and bias, float32 `[N]`, are of the same library and on the same device. y has the dtype
    of x, rounded once. Tensors must be contiguous, and on a GPU begin on a 16-byte boundary. There
    the work is put on PyTorch's current stream; where a kernel wants a workspace, some megabytes,
    the products of a stream share one that is kept. A row with a value that is not finite is NaN;
    with 16 bits it is what the floats give. There is no gradient.
    """
    _check_packed(packed)
    if act_bits not in (6, 8, 16):
        raise ConfigError(f"act_bits is {act_bits!r}; it must be 6, 8 or 16")
    act_bits = int(act_bits)  # 8.0 is one of them
    torch = None if isinstance(x, np.ndarray) else _torch_of(x, "x")
    if x.ndim == 0 or x.shape[-1] != packed.k:
        raise ConfigError(f"x has shape {list(x.shape)}, expected [..., {packed.k}]")
    if torch is None:
        return _linear_numpy(x, packed, act_bits, bias)
    if bias is not None:
        if isinstance(bias, np.ndarray):
            raise ConfigError("bias is a NumPy array, and x is a PyTorch tensor")
        _torch_of(bias, "bias")
        bias = bias.detach()
    rows = x.detach().reshape(-1, packed.k)
    y = torch.empty((rows.shape[0], packed.n), dtype=x.dtype, device=x.device)
    scratch, workspace, stream = None, None, 0
    if x.is_cuda:
        sizes = (rows.shape[0], packed.n, packed.k)
        scratch_bytes = _kernels.linear_scratch_bytes(*sizes, act_bits=act_bits)
        scratch = torch.empty(scratch_bytes, dtype=torch.uint8, device=x.device)
        stream = torch.cuda.current_stream(x.device).cuda_stream
        workspace_bytes = _kernels.linear_workspace_bytes(
            *sizes, act_bits=act_bits, device=x.device.index
        )
        workspace = _workspace(torch, x.device, stream, workspace_bytes)
    _kernels.linear(
        y,
        rows,
        packed.codes,
        packed.scales,
        packed.n,
        packed.k,
        act_bits=act_bits,
        bias=bias,
        scratch=scratch,
        workspace=workspace,
        stream=stream,
    )
    return y.reshape(*x.shape[:-1], packed.n)


# Of each device and stream, whose products run one after another. Zeros before the first.
_workspaces: dict[tuple[int, int], Any] = {}


def _workspace(torch: Any, device: Any, stream: int, size: int) -> Any:
    """A workspace of so many bytes or more for a product on the stream, the current one."""
    if size == 0:
        return None
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():  # a graph replays on any stream: its own
            return torch.zeros(size, dtype=torch.uint8, device=device)
    kept = _workspaces.get((device.index, stream))
    if kept is None or kept.numel() < size:
        kept = torch.zeros(size, dtype=torch.uint8, device=device)
        _workspaces[device.index, stream] = kept
    return kept


def _linear_numpy(
    x: NDArray[Any], packed: PackedWeight, act_bits: int, bias: NDArray[np.float32] | None
) -> NDArray[Any]:
    rows = x.reshape(-1, packed.k)
    weight: dict[str, Any] = {"n": packed.n, "k": packed.k, "bias": bias}
    if act_bits == 16:
        y = gemm_w6a16(rows, packed.codes, packed.scales, **weight)
    else:
        codes, scales = quantize_activations(rows, act_bits=act_bits)
        y = gemm_w6ax(codes, scales, packed.codes, packed.scales, **weight)
    with np.errstate(over="ignore"):  # past float16 is infinity, as in PyTorch
        return y.astype(x.dtype).reshape(*x.shape[:-1], packed.n)


def _check_packed(packed: object) -> None:
    if not isinstance(packed, PackedWeight):
        raise ConfigError(
            f"packed is a {type(packed).__name__}, expected a PackedWeight",
            hint="kernels.pack(weight)",
        )


def _torch_of(array: Any, name: str) -> Any:
    """The PyTorch that made this tensor; it is never imported for the first time here."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor):
        raise ConfigError(
            f"{name} is a {type(array).__name__}, expected a NumPy array or a PyTorch tensor"
        )
    if array.device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{name} lies on {array.device}, expected the CPU or a CUDA GPU")
    return torch
