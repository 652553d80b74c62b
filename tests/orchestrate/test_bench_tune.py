"""What `flexq-ft bench tune` measures, and what it says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexq_ft import _native
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.bench import tune

LLAMA = """\
[llama]
head_num = 64
size_per_head = 128
kv_head_num = 8
inter_size = 28672
vocab_size = 32000
"""
OPT = """\
[gpt]
head_num = 32
size_per_head = 128
inter_size = 16384
vocab_size = 50272
"""


@pytest.fixture
def shape(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "shape.ini"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_weights_of_a_model_are_fused_and_shared_as_by_the_loader(shape):
    whole = [str(w) for w in tune.weights_of_shape(shape(LLAMA))]
    assert whole == ["10240x8192", "8192x8192", "57344x8192", "8192x28672", "32000x8192"]
    half = [str(w) for w in tune.weights_of_shape(shape(LLAMA), tp=2)]
    assert half == ["5120x8192", "8192x4096", "28672x8192", "8192x14336", "16000x8192"]
    opt = [str(w) for w in tune.weights_of_shape(shape(OPT))]
    assert opt == ["12288x4096", "4096x4096", "16384x4096", "4096x16384", "50272x4096"]


def test_ranks_that_cannot_share_a_model_are_refused(shape):
    with pytest.raises(ConfigError, match="8 key/value heads"):
        tune.weights_of_shape(shape(LLAMA), tp=16)


def test_each_product_is_planned_once_and_the_head_in_floats_only():
    weights = [tune.Weight(64, 32), tune.Weight(64, 32), tune.Weight(96, 32, is_head=True)]
    work = tune.plan(weights, schemes=["fp16", "w8a8"], dtypes=["fp16", "bf16"], ms=[1, 512])
    got = [(w["scheme"], w["dtype"], w["n"], w["ms"]) for w in work]
    assert got == [
        ("fp16", "fp16", 64, [1, 512]),
        ("fp16", "bf16", 64, [1, 512]),
        ("w8a8", "int8", 64, [1, 512]),
        ("fp16", "fp16", 96, [1]),
        ("fp16", "bf16", 96, [1]),
    ]


def test_sizes_that_the_engine_does_not_take_are_refused():
    with pytest.raises(ConfigError, match="w8a8 products of a weight 40x64"):
        tune.plan([tune.Weight(40, 64)], schemes=["w8a8"], dtypes=["fp16"], ms=[1])


def test_a_table_is_named_after_its_gpu():
    assert tune.table_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3.tsv"
    assert tune.parse_weight("12288x4096") == tune.Weight(12288, 4096)
    assert tune.parse_weight("llama-7b") is None


def test_a_row_says_what_won_and_by_how_much():
    skinny = {"kernel": "skinny", "config": "rows=16", "note": "", "us": 10.0}
    library = {"kernel": "cublaslt", "config": "1c", "note": "algo=28", "us": 12.5}
    row = {
        "scheme": "fp16", "dtype": "fp16", "n": 4096, "k": 4096, "m": 1, **skinny,
        "finalists": [skinny, library], "returned": 21, "skinny": 8, "refused": [],
    }  # fmt: skip
    text = tune.summary(row)
    assert text.startswith("fp16 fp16 4096x4096 m=1: skinny rows=16, 10.00 us (3.36 TB/s, 3 TOPS)")
    assert "cublaslt 12.50 us; 21 of cuBLASLt's heuristics, 8 of ours" in text


def test_committed_tables_are_named_after_the_gpu_in_them(repo_root: Path):
    for path in (repo_root / "configs" / "gemm").glob("*.tsv"):
        text = path.read_text(encoding="utf-8")
        assert _native.gemm_table_rows(text)
        gpu = next(line for line in text.splitlines() if line.startswith("# gpu "))
        assert path.name == tune.table_name(gpu.removeprefix("# gpu "))
