"""Draws against probabilities worked out in NumPy, over vocabularies larger than any shortcut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flexq_ft import errors
from flexq_ft._native import ops
from tests.reference import ops as reference

CUTS = [
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 3000},
    {"top_k": 7, "top_p": 0.0},
    {"top_p": 0.0},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.9999},
    {"top_k": 40, "top_p": 0.5},
    {"min_p": 0.2},
    {"top_k": 1500, "top_p": 0.95, "min_p": 0.01},
]


def sample(logits: np.ndarray, generated: int, **params: Any) -> tuple[int, float]:
    """One row on the device of the test. History: the prompt, and what was generated."""
    got = ops.sample_on_device(logits[None], [[0] * (generated + 1)], [params], prompts=[1])
    assert got["status"] == [0]
    return got["tokens"][0], got["logprobs"][0]


def expected(logits: np.ndarray, uniform: float, cut: dict[str, float]) -> int:
    """The token at `uniform` of the kept probabilities, walked by id."""
    if cut == {"top_p": 0.0}:
        return int(np.argmax(logits))
    p = reference.candidates(logits, **cut)
    inside = np.flatnonzero(p.cumsum() > uniform)
    return int(inside[0])


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_draw_is_that_of_the_kept_probabilities(device, rng, cut, spread):
    logits = (rng.standard_normal(5000) * spread).astype(np.float32)
    for step in range(20):
        token, logprob = sample(logits, step, temperature=1.0, seed=3, **cut)
        if device == "cpu":
            assert ops.sample(logits, generated=step, temperature=1.0, seed=3, **cut)[0] == token
        assert token == expected(logits, ops.philox_uniform(3, step), cut)
        x = logits.astype(np.float64)
        assert abs(logprob - (x[token] - np.log(np.exp(x).sum()))) < 1e-5


@pytest.mark.parametrize("temperature", [0.3, 1.7])
def test_temperature_is_applied_before_the_cuts(device, rng, temperature):
    logits = (rng.standard_normal(2000) * 2).astype(np.float32)
    scaled = (logits / np.float64(temperature)).astype(np.float32)
    for step in range(20):
        token, _ = sample(logits, step, temperature=temperature, top_p=0.8)
        assert token == expected(scaled, ops.philox_uniform(0, step), {"top_p": 0.8})


def test_ties_at_the_edge_of_top_k_go_to_the_lower_ids(device):
    logits = np.zeros(300, np.float32)
    drawn = {sample(logits, s, temperature=1.0, top_k=3)[0] for s in range(200)}
    assert drawn == {0, 1, 2}


def test_errors_arrive_as_their_python_class(rng):
    with pytest.raises(errors.ConfigError, match=r"top_p = 1\.5"):
        ops.validate_sampling(10, top_p=1.5)
    with pytest.raises(errors.WeightError, match="not finite"):
        ops.sample(np.array([0.0, np.nan], np.float32))
