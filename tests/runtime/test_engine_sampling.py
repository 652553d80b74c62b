"""What sampling parameters do to a sequence, seen through the engine's steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from tests.tools.hf_models import POSITIONS, VOCAB, make_model, write_folder

PROMPT = [11, 42, 7, 99, 3]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> _native.Engine:
    # Seed 4: 30 greedy tokens after PROMPT hold no end id and no long cycle (checked below).
    model = make_model("llama_gqa", seed=4)
    return _native.Engine(str(write_folder(model, tmp_path_factory.mktemp("llama"))))


def run(engine: _native.Engine, **params: Any) -> tuple[list[int], str]:
    slot = engine.admit(PROMPT, **params)
    tokens: list[int] = []
    finish = None
    while finish is None:
        ((_, token, _, finish),) = engine.step()
        tokens.append(token)
    engine.release(slot)
    return tokens, finish


@pytest.fixture(scope="module")
def greedy(engine: _native.Engine) -> list[int]:
    tokens, finish = run(engine, max_tokens=30, ignore_eos=True)
    assert finish == "length"
    assert len(set(tokens)) > 8
    return tokens


@pytest.mark.parametrize("params", [{"top_p": 0.0}, {"temperature": 1.0, "top_k": 1}])
def test_other_spellings_of_greedy(
    engine: _native.Engine, greedy: list[int], params: dict[str, Any]
) -> None:
    assert run(engine, max_tokens=30, ignore_eos=True, **params)[0] == greedy


def test_seed_decides_and_repeats(engine: _native.Engine, greedy: list[int]) -> None:
    drawn = {
        seed: run(engine, temperature=1.5, max_tokens=30, ignore_eos=True, seed=seed)[0]
        for seed in (0, 1, 2**64 - 1)
    }
    for seed, tokens in drawn.items():
        again = run(engine, temperature=1.5, max_tokens=30, ignore_eos=True, seed=seed)[0]
        assert again == tokens
        assert tokens != greedy
    assert len({tuple(tokens) for tokens in drawn.values()}) == 3


def test_seed_gives_the_same_tokens_in_a_batch(engine: _native.Engine) -> None:
    params: dict[str, Any] = {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "ignore_eos": True}
    expected = [run(engine, max_tokens=12, seed=seed, **params)[0] for seed in (5, 6, 7)]
    slots = [engine.admit(PROMPT, max_tokens=12, seed=seed, **params) for seed in (5, 6, 7)]
    given: dict[int, list[int]] = {slot: [] for slot in slots}
    for _ in range(12):
        for slot, token, _, _ in engine.step():
            given[slot].append(token)
    for slot in slots:
        engine.release(slot)
    assert [given[slot] for slot in slots] == expected


def test_end_id_stops_and_stays_in_the_output(engine: _native.Engine, greedy: list[int]) -> None:
    end = greedy[10]
    first = greedy.index(end)
    assert run(engine, max_tokens=30, end_ids=[end]) == (greedy[: first + 1], "stop")
    assert run(engine, max_tokens=30, end_ids=[end], ignore_eos=True) == (greedy, "length")


def test_min_tokens_masks_the_end_id(engine: _native.Engine, greedy: list[int]) -> None:
    end = greedy[3]
    tokens, _ = run(engine, max_tokens=30, end_ids=[end], min_tokens=8)
    assert len(tokens) >= 8
    assert end not in tokens[:8]
    assert tokens[: greedy.index(end)] == greedy[: greedy.index(end)]


def test_bad_words_are_never_completed(engine: _native.Engine, greedy: list[int]) -> None:
    single, pair = greedy[0], greedy[5:7]
    tokens, _ = run(engine, max_tokens=30, ignore_eos=True, bad_words=[[single], pair, [0]])
    text = PROMPT + tokens
    assert single not in tokens
    assert pair not in [text[i : i + 2] for i in range(len(text) - 1)]


def test_bad_word_may_begin_in_the_prompt(engine: _native.Engine, greedy: list[int]) -> None:
    tokens, _ = run(engine, max_tokens=1, bad_words=[[PROMPT[-1], greedy[0]]])
    assert tokens[0] != greedy[0]


def test_stop_words_end_after_their_last_token(engine: _native.Engine, greedy: list[int]) -> None:
    word = greedy[4:7]
    assert run(engine, max_tokens=30, ignore_eos=True, stop_words=[word]) == (greedy[:7], "stop")
    begins_in_prompt = [PROMPT[-1], greedy[0]]
    assert run(
        engine, max_tokens=30, ignore_eos=True, stop_words=[[130, 130], begins_in_prompt]
    ) == (
        greedy[:1],
        "stop",
    )


def test_penalties_make_tokens_rarer(engine: _native.Engine, greedy: list[int]) -> None:
    repeated, _ = run(engine, max_tokens=60, ignore_eos=True)
    for params in ({"repetition_penalty": 5.0}, {"presence_penalty": 50.0}):
        tokens, _ = run(engine, max_tokens=60, ignore_eos=True, **params)
        assert len(set(tokens)) > len(set(repeated))
    tokens, _ = run(engine, max_tokens=60, ignore_eos=True, presence_penalty=50.0)
    assert len(set(tokens) | set(PROMPT)) == 65  # nothing twice, the prompt included


def test_context_ends_with_length(engine: _native.Engine) -> None:
    tokens, finish = run(engine, max_tokens=10_000, ignore_eos=True)
    assert (len(tokens), finish) == (POSITIONS - len(PROMPT), "length")


def test_logprob_is_the_models_own(engine: _native.Engine) -> None:
    slot = engine.admit(
        PROMPT, temperature=0.7, repetition_penalty=1.3, max_tokens=6, ignore_eos=True, seed=9
    )
    given = [output for _ in range(6) for output in engine.step()]
    engine.release(slot)
    text = PROMPT + [token for _, token, _, _ in given]
    logits = engine.forward(text).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = logprobs[range(4, 10), text[5:]]
    np.testing.assert_allclose([p for _, _, p, _ in given], expected, rtol=0, atol=1e-5)


def test_default_end_id_is_the_models(tmp_path: Path) -> None:
    model = make_model("llama_gqa", seed=4)
    first = int(
        _native.Engine(str(write_folder(model, tmp_path / "a"))).forward(PROMPT)[-1].argmax()
    )
    folder = write_folder(model, tmp_path / "b", ini={"end_id": first})
    engine = _native.Engine(str(folder))
    assert run(engine, max_tokens=5) == ([first], "stop")
    assert first < VOCAB
