"""A whole layer, `pack` and `linear`: NumPy, PyTorch on the CPU and on a GPU agree."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from flexq_ft import _native, kernels
from flexq_ft.errors import ConfigError, WeightError
from tests.reference import gemm as reference
from tests.reference import quantization

gpu_only = pytest.mark.skipif(
    not (_native.gpus() and torch.cuda.is_available()), reason="no GPU, or PyTorch without CUDA"
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1), (17, 192), (100, 1000), (576, 4096)]


def operands(rng: np.random.Generator, m: int, n: int, k: int) -> tuple[Any, Any, Any]:
    x = rng.standard_normal((m, k)).astype(np.float32)
    w = rng.standard_normal((n, k)).astype(np.float32)
    return x, w, rng.standard_normal(n).astype(np.float32)


def expected(x: Any, w: Any, bias: Any, act_bits: int) -> Any:
    w_codes, w_scales = quantization.weight_int6(w)
    a_codes, a_scales = quantization.activations(x, act_bits=act_bits)
    return reference.w6ax(reference.group_sums(a_codes, w_codes), a_scales, w_scales, bias)


def as_numpy(tensor: torch.Tensor) -> Any:
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


@pytest.mark.parametrize("act_bits", [6, 8])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_numpy_is_the_oracle(n: int, k: int, act_bits: int, rng: np.random.Generator) -> None:
    x, w, bias = operands(rng, 5, n, k)
    y = kernels.linear(x, kernels.pack(w), act_bits=act_bits, bias=bias)
    assert y.tobytes() == expected(x, w, bias, act_bits).tobytes()


FORKS = """
import os
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from flexq_ft import _native, kernels

_native.ops.set_threads(2)
x, packed = np.ones((64, 512), np.float32), kernels.pack(np.ones((512, 512), np.float32))
multiply = lambda: kernels.linear(x, packed, act_bits=8).sum()
y = multiply()
with ThreadPoolExecutor() as pool:
    assert pool.submit(multiply).result() == y
    if os.fork() == 0:
        os._exit(0 if multiply() == y else 1)
assert os.wait()[1] == 0
assert multiply() == y
"""


def test_a_fork_of_a_process_that_had_threads_multiplies() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_float_activations_meet_the_weight_that_dequantize_gives(
    n: int, k: int, rng: np.random.Generator
) -> None:
    x, w, bias = operands(rng, 5, n, k)
    packed = kernels.pack(w)
    weight = kernels.dequantize(packed, dtype=np.float32)
    codes, scales = quantization.weight_int6(w)
    exact = codes * np.repeat(scales.astype(np.float64), 128, axis=1)[:, :k]
    assert weight.dtype == np.float32
    assert np.array_equal(weight, exact)
    y = kernels.linear(x, packed, act_bits=16, bias=bias)
    want = x.astype(np.float64) @ exact.T + bias
    assert np.abs(y - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_dequantised_weight_is_rounded_once(dtype: torch.dtype, rng: np.random.Generator) -> None:
    _, w, _ = operands(rng, 1, 100, 1000)
    w[7] *= 1e5  # past float16
    exact = torch.from_numpy(kernels.dequantize(kernels.pack(w), dtype=np.float32))
    weight = kernels.dequantize(kernels.pack(torch.from_numpy(w)), dtype=dtype)
    assert torch.equal(weight, exact.to(dtype))
    on_numpy = {torch.float32: np.float32, torch.float16: np.float16}
    got = kernels.dequantize(kernels.pack(w), dtype=on_numpy.get(dtype, ml_dtypes.bfloat16))
    assert got.tobytes() == as_numpy(weight).tobytes()
    with pytest.raises(ConfigError, match="dtype is int8, expected float32"):
        kernels.dequantize(kernels.pack(w), dtype=np.int8)
    with pytest.raises(ConfigError, match="dtype is int8, expected float32"):
        kernels.dequantize(kernels.pack(torch.from_numpy(w)), dtype=torch.int8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act_bits", [6, 8, 16])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_tensor_of_the_cpu_gives_the_same_bits(
    n: int, k: int, act_bits: int, dtype: torch.dtype, rng: np.random.Generator
) -> None:
    values, w, bias = operands(rng, 6, n, k)
    x = torch.from_numpy(values).to(dtype)
    y = kernels.linear(
        x.reshape(2, 3, k),
        kernels.pack(torch.from_numpy(w)),
        act_bits=act_bits,
        bias=torch.from_numpy(bias),
    )
    assert y.dtype == dtype
    assert y.shape == (2, 3, n)
    want = kernels.linear(as_numpy(x), kernels.pack(w), act_bits=act_bits, bias=bias)
    assert as_numpy(y).tobytes() == want.tobytes()


def test_a_layer_of_pytorch_is_packed_as_it_is(rng: np.random.Generator) -> None:
    """Parameters want gradients; 16-bit weights are quantised from their values."""
    layer = torch.nn.Linear(192, 17).to(torch.bfloat16)
    packed = kernels.pack(layer.weight)
    assert (packed.n, packed.k) == (17, 192)
    want = kernels.pack(layer.weight.detach().float().numpy())
    assert packed.codes.numpy().tobytes() == want.codes.tobytes()
    assert packed.scales.numpy().tobytes() == want.scales.tobytes()
    x = torch.from_numpy(rng.standard_normal((3, 192)).astype(np.float32))
    y = kernels.linear(x, packed, act_bits=8, bias=layer.bias.float())
    error = (y - torch.nn.functional.linear(x, layer.weight.float(), layer.bias.float())).norm()
    assert error < 0.05 * y.norm()


def test_no_tokens_and_not_finite_tokens(rng: np.random.Generator) -> None:
    x, w, _ = operands(rng, 3, 17, 192)
    packed = kernels.pack(torch.from_numpy(w))
    assert kernels.linear(torch.empty(0, 192), packed, act_bits=8).shape == (0, 17)
    x[1, 5] = np.inf
    y = kernels.linear(torch.from_numpy(x), packed, act_bits=8)
    assert torch.isnan(y).all(dim=1).tolist() == [False, True, False]


def test_an_output_past_float16_is_infinite() -> None:
    x = np.full((1, 128), 6e4, np.float16)
    w = np.ones((1, 128), np.float32)
    assert np.isinf(kernels.linear(x, kernels.pack(w), act_bits=8)).all()
    y = kernels.linear(torch.from_numpy(x), kernels.pack(torch.from_numpy(w)), act_bits=8)
    assert torch.isinf(y).all()


def test_tiled_scales(rng: np.random.Generator) -> None:
    scales = rng.standard_normal((3, 37)).astype(np.float16)
    tiled = kernels.tile_scales(scales)
    assert tiled.shape == (3, 3, 16)
    rows = tiled.transpose(0, 2, 1).reshape(48, 3)
    assert np.array_equal(rows[:37], scales.T)
    assert not rows[37:].any()


def test_a_packed_weight_is_shown_by_its_sizes(rng: np.random.Generator) -> None:
    _, w, _ = operands(rng, 1, 17, 192)
    assert repr(kernels.pack(w)) == "PackedWeight(n=17, k=192, device=cpu)"
    assert repr(kernels.pack(torch.from_numpy(w))) == "PackedWeight(n=17, k=192, device=cpu)"


def test_what_does_not_fit_is_refused_by_name(rng: np.random.Generator) -> None:
    values, w, _ = operands(rng, 4, 17, 192)
    packed, on_numpy = kernels.pack(torch.from_numpy(w)), kernels.pack(w)
    x = torch.from_numpy(values)
    for wrong in (x[:, 1:], values[:, 1:], x.new_zeros(0, 191), values[:, :0]):
        shape = r"\[\d, \d+\]"
        with pytest.raises(ConfigError, match=rf"x has shape {shape}, expected \[..., 192\]"):
            kernels.linear(wrong, packed, act_bits=8)
    for scalar in (x[0, 0], np.array(1.0, np.float32)):
        with pytest.raises(ConfigError, match=r"x has shape \[\], expected \[..., 192\]"):
            kernels.linear(scalar, packed, act_bits=8)
    with pytest.raises(ConfigError, match=r"x is .* with strides \[1, 4\]") as caught:
        kernels.linear(torch.from_numpy(values.T.copy()).T, packed, act_bits=8)
    assert "x.contiguous()" in caught.value.hint
    with pytest.raises(ConfigError, match=r"bias is float16\[17\] on cpu, expected float32\[17\]"):
        kernels.linear(x, packed, act_bits=8, bias=torch.zeros(17, dtype=torch.float16))
    with pytest.raises(ConfigError, match="x is float64"):
        kernels.linear(x.double(), packed, act_bits=8)
    with pytest.raises(ConfigError, match="act_bits is 7; it must be 6, 8 or 16"):
        kernels.linear(x, packed, act_bits=7)
    with pytest.raises(ConfigError, match="packed is a ndarray, expected a PackedWeight"):
        kernels.linear(values, w, act_bits=8)
    with pytest.raises(ConfigError, match="x lies on meta, expected the CPU or a CUDA GPU"):
        kernels.linear(x.to("meta"), packed, act_bits=8)
    with pytest.raises(ConfigError, match="packed is a Tensor, expected a NumPy array"):
        kernels.linear(values, packed, act_bits=8)
    with pytest.raises(ConfigError, match="bias is a list, expected a NumPy array"):
        kernels.linear(values, on_numpy, act_bits=8, bias=[0.0] * 17)
    with pytest.raises(ConfigError, match="packed is a ndarray, expected a PackedWeight"):
        kernels.dequantize(w, dtype=np.float32)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="bias is a Tensor, expected a NumPy array"):
        kernels.linear(values, on_numpy, act_bits=16, bias=torch.zeros(17))
    with pytest.raises(ConfigError, match=r"x has shape \[\], expected"):
        kernels.linear(np.zeros((), np.float32), on_numpy, act_bits=8)
    with pytest.raises(ConfigError, match=r"x has shape \[4, 191\], expected \[..., 192\]"):
        kernels.linear(values[:, 1:], on_numpy, act_bits=8)
    with pytest.raises(ConfigError, match="x is a list, expected a NumPy array or a PyTorch"):
        kernels.linear(values.tolist(), packed, act_bits=8)
    with pytest.raises(ConfigError, match="codes is a str, expected an array with __dlpack__"):
        kernels.linear(x, kernels.PackedWeight("codes", packed.scales, 17, 192), act_bits=8)
    with pytest.raises(ConfigError, match="bias is a NumPy array, and x is a PyTorch tensor"):
        kernels.linear(x, packed, act_bits=8, bias=np.zeros(17, np.float32))
    with pytest.raises(ConfigError, match="act_bits is '8'; it must be 6, 8 or 16"):
        kernels.linear(x, packed, act_bits="8")  # type: ignore[arg-type]
    for scales in (on_numpy.scales.T, on_numpy.scales[:, :1], on_numpy.scales[:1], None):
        wrong_scales = kernels.PackedWeight(on_numpy.codes, scales, 17, 192)
        with pytest.raises(ConfigError, match=r"scales has shape \[.*\], expected \[2, 17\]"):
            kernels.dequantize(wrong_scales, dtype=np.float32)
    w[3, 7] = np.nan
    with pytest.raises(WeightError, match="row 3, column 7"):
        kernels.pack(torch.from_numpy(w))


@gpu_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act_bits", [6, 8])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_gpu_gives_what_the_cpu_gives(
    n: int, k: int, act_bits: int, dtype: torch.dtype, rng: np.random.Generator
) -> None:
    """Codes and sums are the same; the order of the groups' sum, and so the last bits, are not."""
    for m in (1, 3, 16, 65):
        values, w, bias = operands(rng, m, n, k)
        x, weight, b = torch.from_numpy(values).to(dtype), torch.from_numpy(w), torch.tensor(bias)
        want = kernels.linear(x, kernels.pack(weight), act_bits=act_bits, bias=b).float()
        packed = kernels.pack(weight.cuda())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            y = kernels.linear(x.cuda(), packed, act_bits=act_bits, bias=b.cuda())
        stream.synchronize()
        assert y.is_cuda
        assert y.dtype == dtype
        limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
        assert (y.cpu().float() - want).abs().max() <= limit * want.abs().max()


@gpu_only
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_gpu_multiplies_floats_of_any_number_of_tokens(
    n: int, k: int, dtype: torch.dtype, rng: np.random.Generator
) -> None:
    values, w, bias = operands(rng, 200, n, k)
    x, weight, b = torch.from_numpy(values).to(dtype), torch.from_numpy(w), torch.tensor(bias)
    want = kernels.linear(x, kernels.pack(weight), act_bits=16, bias=b).float()
    packed = kernels.pack(weight.cuda())
    whole = kernels.linear(x.cuda(), packed, act_bits=16, bias=b.cuda())
    assert whole.dtype == dtype
    limit = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    assert (whole.cpu().float() - want).abs().max() <= limit * want.abs().max()
    for m in (1, 63, 64, 65, 129):
        y = kernels.linear(x[:m].cuda(), packed, act_bits=16, bias=b.cuda())
        assert torch.equal(y, whole[:m])
    assert kernels.linear(x[:0].cuda(), packed, act_bits=16).shape == (0, n)


@gpu_only
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_gpu_dequantises_to_the_bits_of_the_cpu(
    n: int, k: int, dtype: torch.dtype, rng: np.random.Generator
) -> None:
    weight = torch.from_numpy(operands(rng, 1, n, k)[1])
    got = kernels.dequantize(kernels.pack(weight.cuda()), dtype=dtype)
    assert got.is_cuda
    assert torch.equal(got.cpu(), kernels.dequantize(kernels.pack(weight), dtype=dtype))


@gpu_only
def test_a_gpu_has_no_weight_only_kernel_for_float32(rng: np.random.Generator) -> None:
    values, w, _ = operands(rng, 4, 17, 192)
    packed = kernels.pack(torch.from_numpy(w).cuda())
    with pytest.raises(ConfigError, match="activations must be fp16 or bf16, not fp32"):
        kernels.linear(torch.from_numpy(values).cuda(), packed, act_bits=16)
    with pytest.raises(ConfigError, match=r"cannot dequantize \[17, 192\] to fp32"):
        kernels.dequantize(packed, dtype=torch.float32)


@gpu_only
def test_arrays_of_two_devices_are_refused(rng: np.random.Generator) -> None:
    values, w, _ = operands(rng, 4, 17, 192)
    packed = kernels.pack(torch.from_numpy(w))
    with pytest.raises(ConfigError, match=r"codes is uint8.* on cpu, but x is .* on cuda:0"):
        kernels.linear(torch.from_numpy(values).cuda(), packed, act_bits=8)
    x = torch.from_numpy(values).cuda().reshape(-1)[1 : 1 + 192].reshape(1, 192)
    with pytest.raises(ConfigError, match="16-byte boundary"):
        kernels.linear(x, kernels.pack(torch.from_numpy(w).cuda()), act_bits=8)


@gpu_only
def test_products_that_want_a_workspace_have_one_for_each_stream(rng: np.random.Generator) -> None:
    """Products of several streams at once, of one stream in turn, and those of a graph."""
    m, n, k = 2048, 2048, 576
    if _native.kernels.linear_workspace_bytes(m, n, k, act_bits=6, device=0) == 0:
        pytest.skip("this GPU's choice of kernel wants none")
    values, w, _ = operands(rng, m, n, k)
    x, packed = torch.from_numpy(values).half().cuda(), kernels.pack(torch.from_numpy(w).cuda())
    want = kernels.linear(x.cpu(), kernels.pack(torch.from_numpy(w)), act_bits=6).float()
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    results = []
    for _ in range(4):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(kernels.linear(x, packed, act_bits=6))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernels.linear(
            kernels.linear(x, packed, act_bits=6)[:, :k].contiguous(), packed, act_bits=6
        )
    torch.cuda.synchronize()
    for _ in range(2):
        captured.fill_(float("nan"))
        graph.replay()
    chained = kernels.linear(results[0][:, :k].contiguous(), packed, act_bits=6)
    torch.cuda.synchronize()
    assert all(torch.equal(y, results[0]) for y in results)
    assert torch.equal(captured, chained)
    assert (results[0].cpu().float() - want).abs().max() <= 2e-3 * want.abs().max()
