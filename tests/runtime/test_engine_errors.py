"""What an engine refuses, by which type, and that it goes on afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.errors import ConfigError, OutOfMemoryError, WeightError
from tests.tools.hf_models import POSITIONS, VOCAB, make_model, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folder(make_model("llama_gqa"), tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def engine(folder: str) -> _native.Engine:
    return _native.Engine(folder, max_len=40, max_batch=1)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], ["empty"]),
        ([5, VOCAB], ["token 1", str(VOCAB)]),
        ([-1], ["token 0", "-1"]),
        ([5] * 40, ["40 tokens", "holds 40"]),
    ],
)
def test_prompt_that_cannot_run(engine: _native.Engine, ids: list[int], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        engine.admit(ids)
    assert all(word in raised.value.message for word in words), raised.value.message
    assert raised.value.hint
    assert engine.can_admit(39, 1)


@pytest.mark.parametrize("call", ["forward", "score", "trace"])
def test_text_longer_than_the_context(engine: _native.Engine, call: str) -> None:
    with pytest.raises(ConfigError, match=r"41 tokens.*holds 40"):
        getattr(engine, call)([5] * 41)
    with pytest.raises(ConfigError, match="empty"):
        getattr(engine, call)([])
    getattr(engine, call)([5] * 40)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": -1.0},
        {"top_p": 1.5},
        {"max_tokens": 0},
        {"repetition_penalty": 1.2, "presence_penalty": 0.1},
        {"stop_words": [[VOCAB]]},
        {"bad_words": [[]]},
    ],
)
def test_sampling_out_of_range(engine: _native.Engine, params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        engine.admit([5], **params)
    assert engine.can_admit(1, 1)


def test_slots_that_are_not_there(engine: _native.Engine) -> None:
    with pytest.raises(ConfigError, match="slot 0 is not in use"):
        engine.release(0)
    slot = engine.admit([5])
    with pytest.raises(ConfigError, match="all 1 slots"):
        engine.admit([5])
    engine.release(slot)
    with pytest.raises(ConfigError, match="slot 7"):
        engine.release(7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_len": POSITIONS + 1}, [str(POSITIONS + 1), str(POSITIONS)]),
        ({"max_len": -1}, ["max_len"]),
        ({"max_batch": 2**32}, ["max_batch", "4096"]),
        ({"max_len": 40, "kv_tokens": 32}, ["2 pages", "needs 3"]),
        ({"kv_tokens": -1}, ["kv_tokens"]),
        ({"max_batch": 0}, ["max_batch"]),
        ({"prefill_tokens": -1}, ["prefill_tokens"]),
        ({"threads": -2}, ["threads"]),
        ({"dtype": "int8"}, ["int8"]),
        ({"scheme": "w4a16"}, ["w4a16"]),
        ({"step_kernel": "always"}, ["step_kernel", "always"]),
        ({"step_kernel": "on"}, ["step_kernel is on", "CPU"]),
        ({"scheme": "w6ax"}, ["w6ax", "fp16"]),
        ({"scheme": "bf16", "dtype": "fp32"}, ["bf16", "fp32"]),
        ({"policy": {"schema": "flexq-ft/policy/1", "default": 8}}, ["policy", "fp16"]),
    ],
)
def test_options_that_the_folder_does_not_allow(
    folder: str, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        _native.Engine(folder, **options)
    assert all(word in raised.value.message for word in words), raised.value.message


@pytest.mark.parametrize("choice", ["auto", "off"])
def test_a_step_kernel_is_nothing_to_the_cpu(folder: str, choice: str) -> None:
    assert _native.Engine(folder, max_len=16, step_kernel=choice).step_note == ""


def test_context_beyond_the_sliding_window_is_refused_by_name(tmp_path: Path) -> None:
    folder = str(write_folder(make_model("mistral"), tmp_path, ini={"sliding_window": 32}))
    assert _native.Engine(folder).max_len == 32
    with pytest.raises(ConfigError, match="sliding_window of 32"):
        _native.Engine(folder, max_len=33)


def test_more_memory_than_there_is(tmp_path: Path) -> None:
    positions = 2**24
    ini = {"max_pos_seq_len": positions}
    folder = str(write_folder(make_model("llama_gqa"), tmp_path, ini=ini))
    with pytest.raises(OutOfMemoryError) as raised:
        _native.Engine(folder, max_len=positions, prefill_tokens=8 * positions)
    assert "MiB" in raised.value.message
    assert "KV cache" in raised.value.cause
    assert "--max-batch" in raised.value.hint


def test_linear_that_is_not_there(engine: _native.Engine) -> None:
    with pytest.raises(ConfigError, match=r"layers\.3\.qkv"):
        engine.run_linear("layers.3.qkv", np.zeros((1, 72), np.float32))
    with pytest.raises(ConfigError, match="72"):
        engine.run_linear("layers.0.qkv", np.zeros((2, 71), np.float32))
    with pytest.raises(ConfigError):
        engine.run_linear("layers.0.qkv", np.zeros(72, np.float32))


def test_logits_that_are_not_finite_name_the_slot_and_spare_the_engine(tmp_path: Path) -> None:
    model = make_model("llama_mha")
    model.model.embed_tokens.weight.data[78] = float("inf")
    engine = _native.Engine(str(write_folder(model, tmp_path)), max_batch=2)
    good = engine.admit([5, 6], max_tokens=3, ignore_eos=True)
    bad = engine.admit([5, 78], max_tokens=3)
    with pytest.raises(WeightError, match=f"slot {bad}"):
        engine.step()
    with pytest.raises(WeightError, match=f"slot {bad}"):  # nothing has advanced
        engine.step()
    engine.release(bad)
    tokens = [token for _ in range(3) for _, token, _, _ in engine.step()]
    engine.release(good)
    slot = engine.admit([5, 6], max_tokens=3, ignore_eos=True)
    assert [token for _ in range(3) for _, token, _, _ in engine.step()] == tokens
    engine.release(slot)
    with pytest.raises(WeightError, match=r"position \d: the model's logits are not finite"):
        engine.score([5, 78, 6])


def test_more_threads_than_can_be_started_are_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="threads is 100000, and at most 1024 run"):
        _native.Engine(folder, threads=100_000)
