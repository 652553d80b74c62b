"""The engine against Hugging Face transformers, float schemes.

The whole set of claims runs on generated models; `pytest --models DIR --text FILE` adds real ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.e2e.conftest import Model, compare, hf_logits
from tests.reference.divergence import Divergence

GREEDY_STEPS = 64


def greedy(engine, prompt: list[int], steps: int) -> list[int]:
    slot = engine.admit(prompt, max_tokens=steps, ignore_eos=True)
    tokens: list[int] = []
    while len(tokens) < steps:
        tokens += [token for s, token, _, _ in engine.step() if s == slot]
    engine.release(slot)
    return tokens


def hf_greedy(model, prompt: list[int], steps: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def test_fp32_logits_are_those_of_transformers(
    model: Model, measured: Callable[[str], None]
) -> None:
    engine = model.engine("fp32")
    worst = 0.0
    for ids in model.windows(min(200, model.positions), 3):
        ours, theirs = engine.forward(ids), hf_logits(model.reference, ids)
        assert ours.shape == theirs.shape
        worst = max(worst, float(np.abs(ours - theirs).max()))
    measured(f"{model.name}: max |logit difference| {worst:.2e}")
    assert worst <= 2e-3


def test_fp32_greedy_tokens_are_those_of_transformers(model: Model) -> None:
    prompt = model.text[:9]
    ours = greedy(model.engine("fp32"), prompt, GREEDY_STEPS)
    assert ours == hf_greedy(model.reference, prompt, GREEDY_STEPS)


def test_chunked_prefill_and_decode_give_the_logits_of_one_pass(model: Model) -> None:
    """Teacher-forced logits do not depend on how the prompt was cut into steps."""
    ids = model.text[:75]
    whole = model.engine("fp32").forward(ids)
    chunked = model.engine("fp32", prefill_tokens=16).forward(ids)
    np.testing.assert_array_equal(chunked, whole)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_perplexity_is_that_of_transformers(
    model: Model, dtype: str, measured: Callable[[str], None]
) -> None:
    engine = model.engine(dtype, dtype=dtype)
    reference = model.reference
    if dtype != "fp32":  # the same rounded weights, fp32 arithmetic
        reference = model.hf().to(getattr(torch, {"fp16": "float16", "bf16": "bfloat16"}[dtype]))
        reference = reference.float()
    # Real models: the first 50 windows of 1024 in fp32.
    length, count = (1024, 50) if model.trained and dtype == "fp32" else (256, 8)
    divergence = Divergence()
    for ids in model.windows(min(length, model.positions), count):
        compare(divergence, model, engine, reference, ids)
    measured(f"{model.name} {dtype}: {divergence}")
    assert divergence.perplexity_error <= (0.001 if dtype != "bf16" else 0.01), str(divergence)


def test_score_is_the_log_softmax_of_forward(model: Model) -> None:
    engine = model.engine("fp32")
    ids = model.text[:90]
    logits = engine.forward(ids).astype(np.float64)
    logprobs, argmax = engine.score(ids)
    shifted = logits - logits.max(-1, keepdims=True)
    expected = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    np.testing.assert_allclose(logprobs, expected[np.arange(89), ids[1:]], atol=2e-5)
    np.testing.assert_array_equal(argmax, logits[:-1].argmax(-1))


def test_a_w8a16_float_folder_and_a_converted_one_are_the_same_model(model: Model) -> None:
    """FasterTransformer quantises at load; the converter does it before: the same integers."""
    ids = model.text[:50]
    converted = model.engine("w8a16").forward(ids)
    at_load = model.engine("fp32", scheme="w8a16").forward(ids)
    np.testing.assert_array_equal(at_load, converted)
