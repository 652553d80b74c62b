"""The engine against transformers in float32, and against itself where bits must not move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.errors import ConfigError
from tests.tools.hf_models import (
    KINDS,
    POSITIONS,
    VOCAB,
    greedy_tokens,
    logits_of,
    make_model,
    rounded,
    write_folder,
)

LOGIT_LIMIT = 2e-3


def some_ids(count: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(3, VOCAB, count)]


def generate(engine: _native.Engine, prompt: list[int], steps: int) -> list[tuple[int, float]]:
    slot = engine.admit(prompt, max_tokens=steps, ignore_eos=True)
    out: list[tuple[int, float]] = []
    while len(out) < steps:
        out += [(token, logprob) for _, token, logprob, _ in engine.step()]
    engine.release(slot)
    return out


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_greedy_tokens_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model = make_model(kind)
    engine = _native.Engine(str(write_folder(model, tmp_path)))
    ids = some_ids(POSITIONS)
    expected = logits_of(model, ids)
    assert np.abs(expected).max() > 1  # the model says something
    np.testing.assert_allclose(engine.forward(ids), expected, rtol=0, atol=LOGIT_LIMIT)
    ours = generate(engine, ids[:21], 40)
    assert [token for token, _ in ours] == greedy_tokens(model, ids[:21], 40)
    text = ids[:21] + [token for token, _ in ours]
    logprobs = log_softmax(logits_of(model, text))[range(20, 60), text[21:]]
    np.testing.assert_allclose([p for _, p in ours], logprobs, rtol=0, atol=LOGIT_LIMIT)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", ["llama_gqa", "opt"])
def test_16_bit_folder(kind: str, dtype: str, tmp_path: Path) -> None:
    model = rounded(make_model(kind), dtype)
    folder = str(write_folder(model, tmp_path, dtype=dtype))
    ids = some_ids(50)
    expected = logits_of(model, ids)
    exact = _native.Engine(folder, dtype="fp32").forward(ids)
    np.testing.assert_allclose(exact, expected, rtol=0, atol=LOGIT_LIMIT)
    engine = _native.Engine(folder)
    assert engine.dtype == dtype
    ours = engine.forward(ids)
    # The stored values are exact; what differs is the rounding of about ten stores a layer.
    rounding = {"fp16": 2.0**-11, "bf16": 2.0**-8}[dtype] * np.abs(expected).max()
    assert 0 < np.abs(ours - expected).max() < 4 * rounding


@pytest.mark.parametrize("scheme", ["fp16", "w8a16", "w8a8"])
def test_chunked_prefill_is_the_same_bits(scheme: str, tmp_path: Path) -> None:
    folder = str(write_folder(make_model("llama_gqa"), tmp_path))
    ids = some_ids(83)
    whole = _native.Engine(folder, scheme=scheme).forward(ids)
    for chunk in (1, 7, 16, 80):
        engine = _native.Engine(folder, scheme=scheme, prefill_tokens=chunk)
        np.testing.assert_array_equal(engine.forward(ids), whole, f"chunks of {chunk}")
        slot = engine.admit(ids, max_tokens=1)
        outputs = [engine.step() for _ in range(-(-len(ids) // chunk))]
        assert [len(step) for step in outputs] == [0] * (len(outputs) - 1) + [1]
        assert outputs[-1][0][1] == int(whole[-1].argmax())
        engine.release(slot)


@pytest.mark.parametrize("scheme", ["fp16", "w8a16", "w8a8"])
def test_decode_gives_the_logits_of_prefill(scheme: str, tmp_path: Path) -> None:
    folder = str(write_folder(make_model("llama_gqa"), tmp_path))
    engine = _native.Engine(folder, scheme=scheme)
    prompt = some_ids(9)
    ours = generate(engine, prompt, 30)
    text = prompt + [token for token, _ in ours]
    expected = log_softmax(engine.forward(text))[range(8, 38), text[9:]]
    np.testing.assert_allclose([p for _, p in ours], expected, rtol=0, atol=1e-5)


def test_threads_do_not_change_a_bit(tmp_path: Path) -> None:
    folder = str(write_folder(make_model("llama_gqa"), tmp_path))
    ids = some_ids(37)
    one, three = (_native.Engine(folder, threads=threads) for threads in (1, 3))
    assert (one.threads, three.threads) == (1, 3)
    np.testing.assert_array_equal(one.forward(ids), three.forward(ids))


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])
def test_w8_of_a_float_folder_is_near_the_float_model(scheme: str, tmp_path: Path) -> None:
    model = make_model("llama_gqa")
    folder = str(write_folder(model, tmp_path))
    ids = some_ids(60)
    engine = _native.Engine(folder, scheme=scheme)
    assert engine.scheme == scheme
    ours, expected = engine.forward(ids), logits_of(model, ids)
    error = float(((ours - expected) ** 2).mean() / (expected**2).mean())
    assert 0 < error < {"w8a16": 1e-3, "w8a8": 4e-3}[scheme]


def test_score_is_the_log_softmax_of_forward(tmp_path: Path) -> None:
    engine = _native.Engine(str(write_folder(make_model("llama_mha"), tmp_path)), prefill_tokens=13)
    ids = some_ids(70)  # more rows than are made at a time
    logits = engine.forward(ids)
    logprobs, argmax = engine.score(ids)
    expected = log_softmax(logits)[range(69), ids[1:]]
    np.testing.assert_allclose(logprobs, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(argmax, logits[:-1].argmax(-1))
    assert logprobs.dtype == np.float32
    assert argmax.dtype == np.int64
    assert [part.shape for part in engine.score(ids[:1])] == [(0,), (0,)]


def test_a_tail_is_scored_alone(tmp_path: Path) -> None:
    """Whether it begins within a chunk of the prefill, at its edge, or has nothing to score."""
    engine = _native.Engine(str(write_folder(make_model("opt"), tmp_path)), prefill_tokens=13)
    ids = some_ids(70)
    logprobs, argmax = engine.score(ids)
    for first in (1, 5, 13, 14, 40, 69, 70):
        tail_logprobs, tail_argmax = engine.score(ids, first)
        np.testing.assert_array_equal(tail_logprobs, logprobs[first - 1 :])
        np.testing.assert_array_equal(tail_argmax, argmax[first - 1 :])
    for first in (0, -1, 71):
        with pytest.raises(ConfigError, match=f"from {first} on cannot be scored of 70"):
            engine.score(ids, first)


@pytest.mark.parametrize("kind", ["llama_gqa", "opt"])
@pytest.mark.parametrize("scheme", ["fp16", "w8a16", "w8a8"])
def test_recorded_inputs_give_the_recorded_outputs(kind: str, scheme: str, tmp_path: Path) -> None:
    engine = _native.Engine(
        str(write_folder(make_model(kind), tmp_path)), scheme=scheme, prefill_tokens=8
    )
    ids = some_ids(21)
    traces = engine.trace(ids)
    linears = {"llama_gqa": "qkv o gate_up down", "opt": "qkv o fc1 fc2"}[kind].split()
    names = [f"layers.{i}.{linear}" for i in range(3) for linear in linears]
    assert [trace["name"] for trace in traces] == [*names, "lm_head"]
    for trace in traces:
        assert trace["x"].shape[0] == trace["y"].shape[0] == 21
        np.testing.assert_array_equal(engine.run_linear(trace["name"], trace["x"]), trace["y"])
    np.testing.assert_array_equal(traces[-1]["y"], engine.forward(ids))


def test_run_linear_rounds_its_input_to_the_compute_type(tmp_path: Path) -> None:
    model = rounded(make_model("llama_mha"), "fp16")
    engine = _native.Engine(str(write_folder(model, tmp_path, dtype="fp16")))
    x = np.random.default_rng(0).standard_normal((1000, 100)).astype(np.float32)  # > one step
    y = engine.run_linear("layers.1.down", x)
    weight = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    np.testing.assert_allclose(y, x.astype(np.float16).astype(np.float32) @ weight.T, atol=1e-4)


def test_memory_is_what_was_asked_for(tmp_path: Path) -> None:
    folder = str(write_folder(make_model("llama_gqa"), tmp_path))
    memory = _native.Engine(folder, max_len=33, max_batch=3).memory()
    # layers, K and V, sequences, pages of 16 tokens, KV heads, head_dim, fp32
    assert memory["kv_cache"] == 3 * 2 * 3 * 3 * 16 * 2 * 12 * 4
    assert memory["weights"] > 2 * VOCAB * 72 * 4
    assert memory["activations"] > 0
    assert _native.peak_resident_bytes() > memory["weights"]
