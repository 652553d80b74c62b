"""Sequences that share an engine: what one gives must not depend on the others."""

from __future__ import annotations

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.errors import ConfigError
from tests.tools.hf_models import VOCAB, make_model, write_folder

Tokens = list[tuple[int, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folder(make_model("llama_gqa"), tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def opt_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folder(make_model("opt"), tmp_path_factory.mktemp("opt")))


def prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [[int(i) for i in rng.integers(3, VOCAB, length)] for length in lengths]


def alone(engine: _native.Engine, prompt: list[int], steps: int) -> Tokens:
    slot = engine.admit(prompt, max_tokens=steps, ignore_eos=True)
    out: Tokens = []
    while len(out) < steps:
        out += [(token, logprob) for _, token, logprob, _ in engine.step()]
    engine.release(slot)
    return out


@pytest.mark.parametrize("scheme", ["fp16", "w8a16", "w8a8"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_ragged_batch_gives_the_bits_of_each_alone(folder: str, scheme: str, dtype: str) -> None:
    asked = list(zip(prompts(1, 40, 17, 16, 5), (30, 9, 25, 12, 40), strict=True))
    engine = _native.Engine(folder, scheme=scheme, dtype=dtype)
    expected = [alone(engine, prompt, steps) for prompt, steps in asked]

    shared = _native.Engine(
        folder, scheme=scheme, dtype=dtype, max_batch=3, prefill_tokens=11, max_len=60
    )
    waiting = list(enumerate(asked))
    running: dict[int, int] = {}
    given: list[Tokens] = [[] for _ in asked]
    while waiting or running:
        while waiting and shared.can_admit(len(waiting[0][1][0]), waiting[0][1][1]):
            index, (prompt, steps) = waiting.pop(0)
            running[shared.admit(prompt, max_tokens=steps, ignore_eos=True)] = index
        for slot, token, logprob, finish in shared.step():
            given[running[slot]].append((token, logprob))
            if finish:
                assert finish == "length"
                shared.release(slot)
                del running[slot]
    assert given == expected


def test_opt_batch_gives_the_bits_of_each_alone(opt_folder: str) -> None:
    engine = _native.Engine(opt_folder)
    asked = prompts(3, 33)
    expected = [alone(engine, prompt, 10) for prompt in asked]
    slots = [engine.admit(prompt, max_tokens=10, ignore_eos=True) for prompt in asked]
    given: dict[int, Tokens] = {slot: [] for slot in slots}
    while any(len(tokens) < 10 for tokens in given.values()):
        for slot, token, logprob, _ in engine.step():
            given[slot].append((token, logprob))
    assert [given[slot] for slot in slots] == expected


def test_pages_left_by_others_do_not_show(folder: str) -> None:
    engine = _native.Engine(folder, max_batch=2, max_len=48)
    first, long = prompts(7, 40)
    expected = alone(engine, first, 20)
    for _ in range(3):  # every page has been written by someone else
        held = engine.admit(long, max_tokens=8)
        engine.step()
        assert alone_beside(engine, first, 20) == expected
        engine.release(held)


def alone_beside(engine: _native.Engine, prompt: list[int], steps: int) -> Tokens:
    slot = engine.admit(prompt, max_tokens=steps, ignore_eos=True)
    out: Tokens = []
    while len(out) < steps:
        out += [(token, logprob) for s, token, logprob, _ in engine.step() if s == slot]
    engine.release(slot)
    return out


def test_forward_works_while_every_slot_is_busy_and_disturbs_none(folder: str) -> None:
    engine = _native.Engine(folder, max_batch=2, max_len=64)
    asked = prompts(20, 9)
    ids = prompts(64)[0]
    quiet = engine.forward(ids)
    expected = [alone(engine, prompt, 16) for prompt in asked]
    slots = [engine.admit(prompt, max_tokens=16, ignore_eos=True) for prompt in asked]
    given: dict[int, Tokens] = {slot: [] for slot in slots}
    while any(len(tokens) < 16 for tokens in given.values()):
        for slot, token, logprob, _ in engine.step():
            given[slot].append((token, logprob))
        assert not engine.can_admit(1, 1)
        np.testing.assert_array_equal(engine.forward(ids), quiet)
    assert [given[slot] for slot in slots] == expected


def test_slot_is_free_again_only_after_release(folder: str) -> None:
    engine = _native.Engine(folder, max_batch=1)
    slot = engine.admit([5, 6], max_tokens=1)
    assert [output[0] for output in engine.step()] == [slot]
    assert engine.step() == []  # finished, and idle
    assert not engine.can_admit(2, 1)
    engine.release(slot)
    assert engine.can_admit(2, 1)
    assert engine.admit([5, 6], max_tokens=1) == slot


def test_step_without_sequences_is_empty(folder: str) -> None:
    assert _native.Engine(folder).step() == []


def test_run_repeated_is_the_same_bits(folder: str) -> None:
    engine = _native.Engine(folder, scheme="w8a8")
    prompt = prompts(30)[0]
    assert alone(engine, prompt, 20) == alone(engine, prompt, 20)
    np.testing.assert_array_equal(engine.forward(prompt), engine.forward(prompt))


def test_a_cache_smaller_than_the_batch_makes_sequences_wait(folder: str) -> None:
    engine = _native.Engine(folder, max_batch=4, max_len=64, kv_tokens=80)
    assert engine.kv_tokens == 80
    first, second = prompts(20, 10)
    slot = engine.admit(first, max_tokens=28, ignore_eos=True)  # 48 tokens: 3 of 5 pages
    assert engine.can_admit(10, 22) and not engine.can_admit(10, 23)
    with pytest.raises(ConfigError, match=r"2 free pages.* need 3"):
        engine.admit(second, max_tokens=23, ignore_eos=True)
    engine.release(slot)
    engine.release(engine.admit(second, max_tokens=23, ignore_eos=True))
