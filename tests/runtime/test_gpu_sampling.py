"""Sampling with its state in device memory: the tokens, faults and ends of the host's functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flexq_ft import errors
from flexq_ft._native import ops

OK, IDLE, NOT_FINITE, NOTHING_LEFT, INFINITE = range(5)

PARAMS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_k": 1},
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.3, "top_k": 50},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 1.0, "top_k": 200000},
    {"temperature": 1.0, "top_k": 7, "top_p": 0.0},
    {"temperature": 1.0, "top_p": 0.0},
    {"temperature": 1.0, "top_p": 1e-12},
    {"temperature": 1.0, "top_p": 0.3},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.9999},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.0, "top_k": 40, "top_p": 0.5},
    {"temperature": 0.9, "top_k": 1500, "top_p": 0.95, "min_p": 0.01},
    {"repetition_penalty": 1.4},
    {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 1.0, "top_k": 20, "presence_penalty": 0.7},
    {"presence_penalty": -3.0},
]


def row_of(rng: np.random.Generator, kind: str, vocab: int) -> np.ndarray:
    x = rng.standard_normal(vocab)
    if kind == "flat":
        return (x * 0.01).astype(np.float32)
    if kind == "usual":
        return (x * 3.0).astype(np.float32)
    if kind == "peaked":
        return (x * 20.0).astype(np.float32)
    if kind == "ties":
        return np.round(x * 2.0).astype(np.float32)
    if kind == "equal":
        return np.zeros(vocab, np.float32)
    assert kind == "signed zeros"
    return np.where(x < 0, np.float32(-0.0), np.float32(0.0)).astype(np.float32)


def history_of(rng: np.random.Generator, vocab: int, count: int = 40) -> list[int]:
    return [int(i) for i in rng.integers(0, vocab, count)]


def expect(
    logits: np.ndarray, histories: list[list[int]], params: list[dict[str, Any]], generated: int = 0
) -> list[tuple[int, float]]:
    return [
        ops.sample(logits[r], history=histories[r], generated=generated, **params[r])
        for r in range(len(params))
    ]


@pytest.mark.parametrize("kind", ["flat", "usual", "peaked", "ties", "equal", "signed zeros"])
@pytest.mark.parametrize("vocab", [1, 7, 33, 2048, 5000, 32000])
def test_tokens_are_those_of_the_host(device, rng, kind, vocab):
    """All parameters side by side, so that rows could disturb each other."""
    for seed in range(3 if vocab < 5000 else 1):
        logits = np.stack([row_of(rng, kind, vocab) for _ in PARAMS])
        histories = [history_of(rng, vocab) for _ in PARAMS]
        params = [{"seed": 1000 * seed + r, **p} for r, p in enumerate(PARAMS)]
        got = ops.sample_on_device(logits, histories, params)
        want = expect(logits, histories, params)
        assert got["status"] == [OK] * len(PARAMS)
        assert got["tokens"] == [token for token, _ in want]
        assert np.allclose(got["logprobs"], [p for _, p in want], rtol=1e-6, atol=2e-6)
        assert got["histories"] == [h + [t] for h, (t, _) in zip(histories, want, strict=True)]


def test_a_large_vocabulary(device, rng):
    vocab = 128256
    for kind in ["usual", "flat", "equal"]:
        logits = np.stack([row_of(rng, kind, vocab) for _ in PARAMS])
        histories = [history_of(rng, vocab) for _ in PARAMS]
        params = [{"seed": r, **p} for r, p in enumerate(PARAMS)]
        got = ops.sample_on_device(logits, histories, params)
        assert got["tokens"] == [token for token, _ in expect(logits, histories, params)]


def test_random_parameters(device, rng):
    for _ in range(60):
        vocab = int(rng.choice([3, 31, 100, 2049, 4096]))
        rows = int(rng.integers(1, 9))
        kinds = rng.choice(["flat", "usual", "peaked", "ties"], rows)
        logits = np.stack([row_of(rng, str(kind), vocab) for kind in kinds])
        histories = [history_of(rng, vocab, int(rng.integers(1, 60))) for _ in range(rows)]
        params = []
        for _ in range(rows):
            p: dict[str, Any] = {"seed": int(rng.integers(0, 2**63))}
            p["temperature"] = float(rng.choice([0.0, 0.3, 1.0, 2.5]))
            p["top_k"] = int(rng.choice([0, 1, 2, 17, 600]))
            p["top_p"] = float(rng.choice([0.0, 0.05, 0.6, 0.97, 1.0]))
            p["min_p"] = float(rng.choice([0.0, 0.001, 0.5]))
            p[str(rng.choice(["repetition_penalty", "presence_penalty"]))] = float(
                rng.choice([0.5, 1.0, 1.3])
            )
            params.append(p)
        got = ops.sample_on_device(logits, histories, params)
        assert got["tokens"] == [token for token, _ in expect(logits, histories, params)], params


def test_a_row_does_not_depend_on_the_others(device, rng):
    logits = np.stack([row_of(rng, "usual", 3000) for _ in PARAMS])
    histories = [history_of(rng, 3000) for _ in PARAMS]
    together = ops.sample_on_device(logits, histories, PARAMS)
    for r, p in enumerate(PARAMS):
        alone = ops.sample_on_device(logits[r : r + 1], histories[r : r + 1], [p])
        assert alone["tokens"] == together["tokens"][r : r + 1]
        assert alone["logprobs"] == together["logprobs"][r : r + 1]


def test_repeated_calls_give_the_same_bits(device, rng):
    logits = np.stack([row_of(rng, "flat", 20000) for _ in PARAMS])
    histories = [history_of(rng, 20000) for _ in PARAMS]
    first = ops.sample_on_device(logits, histories, PARAMS)
    for _ in range(100 if device == "cuda" else 3):
        again = ops.sample_on_device(logits, histories, PARAMS)
        assert again["tokens"] == first["tokens"]
        assert again["logprobs"] == first["logprobs"]


def test_a_slot_goes_on_from_its_own_history(device, rng):
    """Each step draws with its own counter, and penalises what the steps before appended."""
    logits = row_of(rng, "usual", 500)
    params = {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.5, "seed": 4}
    got = ops.sample_on_device(logits[None], [[3, 4]], [params], repeat=30)
    history = [3, 4]
    for step in range(30):
        history.append(ops.sample(logits, history=history, generated=step, **params)[0])
    assert got["histories"] == [history]


def test_draws_have_the_probabilities(device):
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125])).astype(np.float32)
    got = ops.sample_on_device(
        logits[None],
        [[0]],
        [{"temperature": 1.0, "seed": 9, "max_tokens": 5000}],
        max_len=4097,
        repeat=4096,
    )
    counts = np.bincount(got["histories"][0][1:], minlength=4)
    sigma = np.sqrt(4096 * 0.25)
    assert np.all(np.abs(counts - 4096 * np.array([0.5, 0.25, 0.125, 0.125])) < 4 * sigma)


def test_bad_words_of_one_and_several_tokens(device):
    logits = np.array([[5, 4, 3, 2, 1]], np.float32)

    def greedy(history: list[int], bad: list[list[int]]) -> int:
        return int(ops.sample_on_device(logits, [history], [{"bad_words": bad}])["tokens"][0])

    assert greedy([1], [[0]]) == 1
    assert greedy([1], [[1, 0]]) == 1
    assert greedy([2], [[1, 0]]) == 0
    assert greedy([3, 1], [[3, 1, 0], [1]]) == 2
    assert greedy([1], [[3, 1, 0]]) == 0  # longer than the history
    assert greedy([4], [[0], [1], [2], [3]]) == 4


def test_end_ids_are_held_back_until_min_tokens(device):
    logits = np.array([[9, 8, 7]], np.float32)
    got = ops.sample_on_device(logits, [[2]], [{"min_tokens": 2}], model_end_ids=[0, 1], repeat=5)
    assert got["histories"] == [[2, 2, 2, 0]]
    assert list(got["finished"]) == [1]
    got = ops.sample_on_device(
        logits, [[2]], [{"min_tokens": 1, "end_ids": [0], "ignore_eos": True}], repeat=3
    )
    assert got["histories"] == [[2, 1, 0, 0]]
    assert list(got["finished"]) == [0]


def finish(history: list[int], token: int, prompt: int, **kwargs: Any) -> int:
    logits = np.zeros((1, 12), np.float32)
    logits[0, token] = 1.0
    max_len = kwargs.pop("max_len", 100)
    got = ops.sample_on_device(
        logits, [history], [kwargs], prompts=[prompt], model_end_ids=[2], max_len=max_len
    )
    assert got["histories"] == [history + [token]]
    return int(got["finished"][0])


def test_ends_by_the_rule_of_stop(device):
    assert finish([5, 6], 2, 2) == 1
    assert finish([5, 2], 6, 1) == 0
    assert finish([5, 6], 2, 2, ignore_eos=True) == 0
    assert finish([5, 6], 7, 2, end_ids=[2, 7]) == 1
    words = {"stop_words": [[8, 9], [4]]}
    assert finish([5, 8], 9, 1, **words) == 1
    assert finish([5, 8, 7], 9, 1, **words) == 0
    assert finish([5], 4, 1, **words) == 1
    assert finish([5, 8], 9, 2, stop_words=[[8, 9]]) == 1  # begins in the prompt
    assert finish([8], 9, 1, stop_words=[[7, 8, 9]]) == 0  # longer than the sequence
    assert finish([7, 8], 9, 1, stop_words=[[7, 8, 9]]) == 1
    assert finish([8], 9, 1, stop_words=[[9]], min_tokens=10) == 1
    assert finish([5, 6], 7, 2, max_tokens=2) == 0
    assert finish([5, 6, 7], 8, 2, max_tokens=2) == 1
    assert finish([5, 6], 7, 2, max_len=3) == 1
    assert finish([5, 6], 7, 2, max_len=4) == 0
    many = [[3, 4, i] for i in range(100)] + [[8, 9]]
    assert finish([5, 8], 9, 1, stop_words=many) == 1


def test_idle_rows_do_nothing(device, rng):
    logits = row_of(rng, "usual", 64)[None].repeat(4, 0)
    got = ops.sample_on_device(
        logits, [[1], [2]], [{}, {"max_tokens": 1}], row_slots=[-1, 1, 7, 0], repeat=3
    )
    best = int(np.argmax(logits[0]))
    assert got["status"] == [IDLE, IDLE, IDLE, OK]
    assert got["histories"] == [[1, best, best, best], [2, best]]
    assert list(got["finished"]) == [0, 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_faults_end_the_slot_and_append_nothing(device, rng, temperature):
    logits = np.stack([row_of(rng, "usual", 3000) for _ in range(4)])
    logits[0, [2500, 2999]] = np.nan, np.inf
    logits[1, 7] = -np.inf
    logits[2, 77] = 3e38
    bad = [[i] for i in range(1000)]
    params: list[dict[str, Any]] = [
        {"temperature": temperature},
        {"temperature": temperature},
        {"temperature": temperature, "repetition_penalty": 0.1},
        {"temperature": temperature},
    ]
    got = ops.sample_on_device(logits, [[77]] * 4, params)
    assert got["status"] == [NOT_FINITE, NOT_FINITE, INFINITE, OK]
    assert got["tokens"][:3] == [2500, 7, 77]
    assert [len(h) for h in got["histories"]] == [1, 1, 1, 2]
    assert list(got["finished"]) == [1, 1, 1, 0]
    for r in range(3):
        with pytest.raises(errors.FlexQFtError) as host:
            ops.sample(logits[r], history=[77], **params[r])
        with pytest.raises(type(host.value)) as fault:
            ops.throw_sampling_fault(
                got["status"][r], got["tokens"][r], got["logprobs"][r], 3000, **params[r]
            )
        assert str(fault.value) == str(host.value)

    params = [{"temperature": temperature, "bad_words": bad}]
    got = ops.sample_on_device(logits[3:, :1000].copy(), [[1]], params)
    assert got["status"] == [NOTHING_LEFT]
    with pytest.raises(errors.ConfigError, match="leave none of the 1000 tokens"):
        ops.throw_sampling_fault(NOTHING_LEFT, 0, 0.0, 1000)


def test_words_that_do_not_fit_are_refused_with_numbers():
    logits = np.zeros((1, 4), np.float32)
    with pytest.raises(errors.ConfigError, match=r"2000 words of 4000 tokens.*8000.*4096"):
        ops.sample_on_device(logits, [[0]], [{"bad_words": [[1, 2]] * 2000}])
    with pytest.raises(errors.ConfigError, match=r"65 ids.*64"):
        ops.sample_on_device(logits, [[0]], [{"end_ids": [1] * 65}])
