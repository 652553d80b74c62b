"""Weights on a GPU are those of the CPU: every linear gives the same for the same input.

Bit for bit they are compared by tests/cpp/test_gpu_loader.cc.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flexq_ft import _native
from tests.tools.hf_models import make_model, write_folder

pytestmark = pytest.mark.skipif(not _native.gpus(), reason="needs a GPU")

# Sizes that the products on a GPU take.
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("scheme", ["fp16", "w8a16", "w8a8"])
@pytest.mark.parametrize("stored", ["fp32", "fp16"])
def test_linears_agree(tmp_path: Path, stored: str, scheme: str, dtype: str) -> None:
    model = make_model("llama_gqa", **SIZES)
    folder = str(write_folder(model, tmp_path, dtype=stored))
    engines = [
        _native.Engine(folder, scheme=scheme, dtype=dtype, device=device)
        for device in ("cpu", "cuda")
    ]
    rng = np.random.default_rng(1)
    for name in ("qkv", "o", "gate_up", "down"):
        k = SIZES["intermediate_size" if name == "down" else "hidden_size"]
        x = rng.standard_normal((5, k)).astype(np.float32)
        cpu, gpu = (engine.run_linear(f"layers.1.{name}", x) for engine in engines)
        assert np.abs(cpu).max() > 0
        np.testing.assert_allclose(gpu, cpu, rtol=0, atol=2e-5 * np.abs(cpu).max())


def test_memory_is_as_planned_kind_by_kind(tmp_path: Path) -> None:
    folder = str(write_folder(make_model("llama_gqa", **SIZES), tmp_path, dtype="fp16"))
    engine = _native.Engine(folder, device="cuda", max_batch=2)
    memory = engine.memory()
    config = engine.config
    pages = 2 * -(-engine.max_len // 16) + 1
    kv = 2 * config.num_layers * pages * 16 * config.num_kv_heads * config.head_dim * 2
    assert memory["kv_cache"] == kv
    layer = 128 * (128 + 2 * 64) + 128 * 128 + 3 * 128 * 192
    tables = 2 * config.vocab_size * 128
    least = 2 * (config.num_layers * layer + tables)
    assert least < memory["weights"] < least + 200_000  # norms, and the table of angles
