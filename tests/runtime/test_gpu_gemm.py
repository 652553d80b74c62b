"""GPU products, of our kernels for few tokens and of cuBLASLt, against NumPy."""

from __future__ import annotations

import re

import numpy as np
import pytest

from flexq_ft import _native, errors
from flexq_ft._native import ops
from tests.reference import ops as reference

CALC_DIFF = {"fp16": 1e-7, "bf16": 5e-6}  # docs/numerics.md, products
TOKENS = [1, 2, 7, 16, 17, 64, 65, 129, 513]
SHAPES = [(576, 576), (1536, 576), (576, 1536), (192, 16), (16, 192), (128, 11008), (11008, 128)]
gpu_only = pytest.mark.skipif(not _native.gpus(), reason="no GPU")

HEAD = "# flexq-ft gemm table 1\n# gpu {gpu}\n# cublaslt {version}\n"


@pytest.fixture
def cuda():
    ops.use_device("cuda")
    yield
    ops.use_device("cpu")


def operands(rng, scheme: str, dtype: str, m: int, n: int, k: int):
    if scheme == "w8a8":
        x = rng.integers(-128, 128, (m, k)).astype(np.int8)
    else:
        x = rng.standard_normal((m, k)).astype(reference.DTYPES[dtype])
    if scheme == "fp16":
        w = rng.standard_normal((n, k)).astype(reference.DTYPES[dtype])
    else:
        w = rng.integers(-127, 128, (n, k)).astype(np.int8)
    return x, w


def assert_product(y, x, w, *, dtype: str) -> None:
    want = x.astype(np.float64) @ w.astype(np.float64).T
    assert y.dtype == np.float32
    assert np.isfinite(y).all()
    assert reference.calc_diff(y, want) <= CALC_DIFF[dtype]
    # Each element: k roundings of its running sum, of the size of its terms.
    terms = np.abs(x.astype(np.float64)) @ np.abs(w.astype(np.float64)).T
    assert (np.abs(y - want) <= 2.0**-22 * np.sqrt(x.shape[1]) * terms + 1e-30).all()


@gpu_only
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("scheme", ["fp16", "w8a16"])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_float_products_match(cuda, rng, scheme, dtype, n, k):
    for m in TOKENS:
        x, w = operands(rng, scheme, dtype, m, n, k)
        assert_product(ops.gpu_gemm(x, w, scheme=scheme), x, w, dtype=dtype)


@gpu_only
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_integer_products_are_exact(cuda, rng, n, k):
    for m in TOKENS:
        x, w = operands(rng, "w8a8", "int8", m, n, k)
        got = ops.gpu_gemm(x, w, scheme="w8a8")
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, x.astype(np.int64) @ w.astype(np.int64).T)


@gpu_only
@pytest.mark.parametrize("m", [1, 64, 65, 150])
def test_a_head_of_any_vocabulary(cuda, rng, m):
    x, w = operands(rng, "fp16", "fp16", m, 131, 192)
    assert_product(ops.gpu_gemm(x, w, scheme="fp16"), x, w, dtype="fp16")


@gpu_only
def test_no_tokens_give_no_rows(cuda):
    x, w = np.zeros((0, 64), np.float16), np.zeros((32, 64), np.float16)
    assert ops.gpu_gemm(x, w, scheme="fp16").shape == (0, 32)


@gpu_only
@pytest.mark.parametrize("m", [1, 16, 65])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_every_code_is_dequantised_exactly(cuda, dtype, m):
    codes = np.arange(-128, 128, dtype=np.int8).reshape(16, 16)
    one = np.zeros((m, 16), reference.DTYPES[dtype])
    one[:, 3] = 1
    got = ops.gpu_gemm(one, codes, scheme="w8a16")
    np.testing.assert_array_equal(got, np.tile(codes[:, 3].astype(np.float32), (m, 1)))


@gpu_only
def test_a_repeated_product_has_the_same_bits(cuda, rng):
    for scheme, m in [("fp16", 4), ("fp16", 129), ("w8a16", 64), ("w8a16", 513)]:
        x, w = operands(rng, scheme, "fp16", m, 576, 1536)
        first = ops.gpu_gemm(x, w, scheme=scheme)
        for _ in range(5):
            np.testing.assert_array_equal(ops.gpu_gemm(x, w, scheme=scheme), first)


@gpu_only
@pytest.mark.parametrize("scheme", ["fp16", "w8a16"])
@pytest.mark.parametrize(("n", "k"), [(576, 1536), (128, 11008)])
def test_a_row_does_not_depend_on_a_batch_of_up_to_16(cuda, rng, scheme, n, k):
    x, w = operands(rng, scheme, "fp16", 16, n, k)
    orders = set()
    for m in range(1, 17):
        choice = ops.gpu_gemm_choice(scheme=scheme, dtype="fp16", m=m, n=n, k=k)
        orders.add(re.search(r"skinny .*(warps=\d+)", choice)[1])
    assert len(orders) == 1
    whole = ops.gpu_gemm(x, w, scheme=scheme)
    for m in range(1, 16):
        np.testing.assert_array_equal(ops.gpu_gemm(x[:m], w, scheme=scheme), whole[:m])
    np.testing.assert_array_equal(ops.gpu_gemm(x[7:8], w, scheme=scheme), whole[7:8])


@gpu_only
def test_sizes_that_no_kernel_takes_are_named(cuda):
    x, w = np.zeros((1, 40), np.int8), np.zeros((16, 40), np.int8)
    with pytest.raises(errors.InternalError, match=r"multiple of 16.*k=40"):
        ops.gpu_gemm(x, w, scheme="w8a8")


@gpu_only
def test_a_table_of_another_gpu_or_version_is_not_used(cuda):
    problem = {"scheme": "fp16", "dtype": "fp16", "m": 64, "n": 576, "k": 576}
    row = "fp16\tfp16\t576\t576\t64\tcublaslt\t1.2.3\t5\t\n"
    gpu = _native.gpus()[0]["name"]
    other = HEAD.format(gpu="GeForce 256", version=130000) + row
    assert "not " + gpu in ops.gpu_gemm_note(table=other)
    assert "(default, first heuristic)" in ops.gpu_gemm_choice(**problem, table=other)
    older = HEAD.format(gpu=gpu, version=10001) + row
    assert "cuBLASLt 1.0.1" in ops.gpu_gemm_note(table=older)
    assert "another version" in ops.gpu_gemm_choice(**problem, table=older)


@gpu_only
@pytest.mark.parametrize("scheme", ["fp16", "w8a16", "w8a8"])
def test_a_measured_table_is_used_and_right(cuda, rng, scheme):
    dtype = "int8" if scheme == "w8a8" else "fp16"
    n, k = 576, 1536
    work = {"scheme": scheme, "dtype": dtype, "n": n, "k": k, "ms": [1, 4, 16, 64, 256]}
    seen = []
    table = _native.tune_gemm(
        [work],
        observe=lambda rows, text: seen.append((rows, text)),
        cold_bytes=1 << 24,
        replays=3,
    )
    assert len(seen) == 1 and seen[0][1] == table
    rows = seen[0][0]
    assert [row["m"] for row in rows] == work["ms"]
    assert all(row["returned"] > 0 and row["us"] > 0 for row in rows)
    assert [row["m"] for row in _native.gemm_table_rows(table)] == work["ms"]
    if scheme != "w8a8":
        orders = {re.search(r"warps=\d+", row["config"])[0] for row in rows if row["m"] <= 16}
        assert len(orders) == 1
    for m in (1, 3, 16, 50, 200):
        choice = ops.gpu_gemm_choice(scheme=scheme, dtype=dtype, m=m, n=n, k=k, table=table)
        # Between buckets the library may refuse the algorithm of the one above, and says so.
        known = choice.endswith("(table)") or (m not in work["ms"] and "refuses" in choice)
        assert known, choice
        x, w = operands(rng, scheme, dtype, m, n, k)
        y = ops.gpu_gemm(x, w, scheme=scheme, table=table)
        if scheme == "w8a8":
            np.testing.assert_array_equal(y, x.astype(np.int64) @ w.astype(np.int64).T)
        else:
            assert_product(y, x, w, dtype=dtype)


@gpu_only
def test_the_library_in_use_is_named():
    info = _native.cublaslt_info()
    assert "libcublasLt" in info["path"]
    assert int(info["version"].split(".")[0]) >= 12


@pytest.mark.skipif(bool(_native.gpus()), reason="a GPU is here")
def test_without_a_gpu_the_search_says_so():
    with pytest.raises(errors.DeviceError):
        _native.tune_gemm([], observe=lambda rows, text: None)


def test_tables_are_merged_by_problem():
    row = "fp16\tfp16\t576\t576\t{m}\tskinny\t{config}\t5.00\t\n"
    head = HEAD.format(gpu="X", version=130101)
    older = head + row.format(m=1, config="a") + row.format(m=2, config="b")
    newer = head + row.format(m=2, config="c")
    rows = _native.gemm_table_rows(_native.merged_gemm_tables(older, newer))
    assert [(r["m"], r["config"], r["us"]) for r in rows] == [(1, "a", 5.0), (2, "c", 5.0)]


def test_a_broken_table_is_refused_with_its_line():
    with pytest.raises(errors.ConfigError, match="line 4"):
        _native.gemm_table_rows(HEAD.format(gpu="X", version=1) + "fp16\tfp16\n")
