"""Heads of eight and six bits: their logits against NumPy, what they cost, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.converter import ConvertOptions, convert
from flexq_ft.errors import ConfigError
from tests.reference import quantization as oracle
from tests.reference.divergence import Divergence
from tests.runtime.conftest import devices
from tests.tools.checkpoints import make_checkpoint
from tests.tools.engines import greedy

# A short last group of 128, and a vocabulary that ends within a tile.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"hidden": 192, "heads": 6, "kv_heads": 3, "vocab": 325},
    "llama-tied": {"hidden": 192, "heads": 6, "kv_heads": 3, "vocab": 325, "tied": True},
    "opt": {"family": "opt", "hidden": 192, "heads": 6, "vocab": 325, "tied": True},
}
HEADS = ("w8", "w6")
IDS = [int(i) for i in np.random.default_rng(3).integers(3, 320, 150)]

Folder = Callable[..., str]


@pytest.fixture(scope="module", params=list(MODELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """folder(lm_head, scheme): a conversion of one model; folder.tensor(): the head's floats."""
    work = tmp_path_factory.mktemp(request.param)
    source = make_checkpoint(work / "hf", tokenizer=False, **MODELS[request.param])

    def get(lm_head: str, scheme: str = "fp32") -> str:
        out = work / f"{scheme}-{lm_head}"
        if not out.exists():
            dtype = None if scheme == "fp32" else "fp32"
            convert(source, out, ConvertOptions(scheme=scheme, dtype=dtype, lm_head=lm_head))
        return str(out / "1-gpu")

    return get


def head_weight(folder: str) -> np.ndarray:
    """[vocab, hidden] of a float folder, which is tied or not."""
    names = ("model.lm_head.weight.bin", "model.wte.weight.bin", "model.wte.bin")
    path = next(p for name in names if (p := Path(folder) / name).exists())
    return np.fromfile(path, np.float32).reshape(325, 192)


def dequantized(lm_head: str, w: np.ndarray) -> np.ndarray:
    if lm_head == "w8":
        codes, scales = oracle.weight_int8(w)
        return codes * scales[:, None].astype(np.float64)
    codes, scales = oracle.weight_int6(w)
    wide = np.repeat(scales.astype(np.float64), oracle.GROUP, axis=1)[:, : w.shape[1]]
    return codes * wide


def engine_on(where: str, folder: str, **options: Any) -> _native.Engine:
    dtype = "fp32" if where == "cpu" else "fp16"
    return _native.Engine(folder, device=where, dtype=dtype, **options)


@pytest.mark.parametrize("where", devices())
@pytest.mark.parametrize("scheme", ["fp32", "w8a8", "w6ax"])
@pytest.mark.parametrize("lm_head", HEADS)
def test_logits_are_numpys(folder: Folder, lm_head: str, scheme: str, where: str) -> None:
    engine = engine_on(where, folder(lm_head, scheme))
    assert engine.lm_head == engine.folder.lm_head == lm_head
    floats = engine_on(where, folder("fp16", scheme))
    assert floats.lm_head == "fp16"
    ours, theirs = engine.trace(IDS)[-1], floats.trace(IDS)[-1]
    np.testing.assert_array_equal(ours["x"], theirs["x"])  # nothing else is quantised by it
    want = ours["x"].astype(np.float64) @ dequantized(lm_head, head_weight(folder("fp16"))).T
    assert np.abs(ours["y"] - want).max() <= 1e-5 * np.abs(want).max()
    np.testing.assert_array_equal(engine.forward(IDS), ours["y"])
    # More rows at a time than a step's logits, and fewer.
    x = np.concatenate([ours["x"], ours["x"][::-1]])
    wide = engine.run_linear("lm_head", x)
    np.testing.assert_allclose(wide[:150], want, atol=1e-5 * np.abs(want).max())
    np.testing.assert_allclose(wide[150:], want[::-1], atol=1e-5 * np.abs(want).max())
    one = engine.run_linear("lm_head", x[:1])
    np.testing.assert_allclose(one, want[:1], atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("where", devices())
def test_fewer_bits_cost_more_and_little(folder: Folder, where: str) -> None:
    floats = engine_on(where, folder("fp16")).forward(IDS)

    def divergence(lm_head: str) -> Divergence:
        out = Divergence()
        out.add(IDS, engine_on(where, folder(lm_head)).forward(IDS), floats)
        return out

    w8, w6 = divergence("w8"), divergence("w6")
    assert 0 < w8.kl < w6.kl < 0.01, f"{w8}; {w6}"
    assert max(w8.perplexity_error, w6.perplexity_error) < 0.01, f"{w8}; {w6}"


@pytest.mark.parametrize("where", devices())
@pytest.mark.parametrize("lm_head", HEADS)
def test_generated_tokens_are_those_of_the_logits(folder: Folder, lm_head: str, where: str) -> None:
    engine = engine_on(where, folder(lm_head))
    tokens = greedy(engine, IDS[:9], 12)
    logits = engine.forward(IDS[:9] + tokens)[8:-1]
    margins = logits.max(-1) - logits[np.arange(len(tokens)), tokens]
    assert margins.max() <= (0 if where == "cpu" else 0.02)  # a GPU decodes by other kernels


@pytest.mark.parametrize("where", devices())
def test_it_saves_the_memory_that_it_should(folder: Folder, where: str) -> None:
    weights = {
        lm_head: engine_on(where, folder(lm_head)).memory()["weights"]
        for lm_head in ("fp16", *HEADS)
    }
    element = 4 if where == "cpu" else 2
    rows = -(-325 // 16) * 16 if where == "cpu" else 325  # panels are padded
    floats = rows * 192 * element
    int8 = rows * 192 + 325 * 4
    int6 = 21 * 2 * 1536 + 2 * (325 if where == "cpu" else 336) * 2  # tiles, and scales
    assert weights["fp16"] - weights["w8"] == floats - int8
    assert weights["fp16"] - weights["w6"] == floats - int6


@pytest.mark.parametrize("where", devices())
@pytest.mark.parametrize("lm_head", HEADS)
def test_synthetic_weights_have_the_head_that_is_asked_for(lm_head: str, where: str) -> None:
    shape = Path(__file__).parents[2] / "configs" / "models" / "smollm2-135m.ini"
    options = {"synthetic_weights": True, "max_len": 64, "max_batch": 1, "scheme": "w6ax"}
    dtype = "fp16"
    engines = [
        _native.Engine(str(shape), device=where, dtype=dtype, lm_head=head, **options)
        for head in ("fp16", lm_head)
    ]
    sizes = [engine.memory()["weights"] for engine in engines]
    bits = {"w8": 8, "w6": 6.125}[lm_head]
    saved = 49152 * 576 * (16 - bits) / 8
    assert sizes[0] - sizes[1] == pytest.approx(saved, rel=0.07)  # 576 is 4.5 groups of 128
    logits = engines[1].forward(IDS[:5])
    assert np.isfinite(logits).all() and 0.5 < logits.std() < 2


def test_another_head_than_the_folders_is_refused(folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"lm_head w8 was asked for, and .* in fp16") as e:
        _native.Engine(folder("fp16"), lm_head="w8")
    assert e.value.hint == "flexq-ft convert SOURCE OUT --lm-head w8"
    with pytest.raises(ConfigError, match=r"lm_head fp16 was asked for, and .* holds it in w6"):
        _native.Engine(folder("w6"), lm_head="fp16")
    with pytest.raises(ConfigError, match='lm_head "w5" is not known'):
        _native.Engine(folder("w6"), lm_head="w5")
    assert _native.Engine(folder("w6"), lm_head="w6").lm_head == "w6"


def test_floats_may_become_w8_at_load_beside_a_quantised_head(folder: Folder) -> None:
    engine = _native.Engine(folder("w6"), scheme="w8a16")
    want = _native.Engine(folder("w6", "w8a16")).forward(IDS[:20])
    np.testing.assert_array_equal(engine.forward(IDS[:20]), want)
