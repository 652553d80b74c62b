"""On a GPU: repeated runs, graphs and eager steps, and rows in a batch give the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from tests.e2e.conftest import Model
from tests.tools.engines import generate, greedy

pytestmark = pytest.mark.skipif(not _native.gpus(), reason="no GPU, or a build without CUDA")

SCHEMES = ["fp16", "bf16", "w8a16", "w8a8", "w6ax", "w6a16"]
SAMPLED = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 11, "ignore_eos": True}

FRESH = """
import json, sys
from flexq_ft import _native
from tests.tools.engines import generate
folder, options, prompt, params = json.loads(sys.argv[1])
print(json.dumps(generate(_native.Engine(folder, **options), [prompt], params)[0]))
"""


def engine(model: Model, scheme: str, **options: Any) -> Any:
    dtype = "bf16" if scheme == "bf16" else "fp16"
    return model.engine(scheme, dtype=dtype, device="cuda", **options)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_hundred_requests_give_the_same_tokens(model: Model, scheme: str) -> None:
    params = {**SAMPLED, "max_tokens": 64}
    prompt = model.text[:15]
    gpu = engine(model, scheme)
    first = generate(gpu, [prompt], params)[0]
    for i in range(1, 100):
        if i % 25 == 0:
            gpu.drop_graphs()
        assert generate(gpu, [prompt], params)[0] == first, f"request {i}"


@pytest.mark.parametrize("scheme", ["fp16", "w8a8", "w6ax"])
def test_fresh_processes_give_the_same_tokens(model: Model, scheme: str) -> None:
    params = {**SAMPLED, "max_tokens": 64}
    prompt = model.text[:15]
    first = generate(engine(model, scheme), [prompt], params)[0]
    folder = str(model.folder(scheme, dtype="fp16"))
    argument = json.dumps([folder, {"device": "cuda", "dtype": "fp16"}, prompt, params])
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", FRESH, argument], capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout) == first


@pytest.mark.parametrize("scheme", SCHEMES)
def test_graphs_and_eager_steps_give_the_same_bits(model: Model, scheme: str) -> None:
    params = {**SAMPLED, "max_tokens": 48}
    batch = [model.text[i * 20 : i * 20 + 3 + 5 * i] for i in range(5)]
    with_graphs = generate(engine(model, scheme), batch, params, logprobs=True)
    eager = generate(engine(model, scheme, graphs=False), batch, params, logprobs=True)
    assert with_graphs == eager


@pytest.mark.parametrize("scheme", ["w6ax", "w6a16"])
def test_graphs_of_many_rows_give_the_bits_of_eager_steps(model: Model, scheme: str) -> None:
    """More rows than the kernels for few tokens take."""
    params = {**SAMPLED, "max_tokens": 12}
    batch = [model.text[i * 9 : i * 9 + 3 + i % 5] for i in range(70)]
    made = [
        generate(engine(model, scheme, max_batch=70, graphs=graphs), batch, params, logprobs=True)
        for graphs in (True, False)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rows", [2, 3, 8, 16])
def test_a_row_of_a_batch_is_the_row_alone(model: Model, scheme: str, rows: int) -> None:
    """Log-probabilities to the last bit, as long as the prompts are prefilled alike (one token),
    and both run op by op (tests/runtime/test_gpu_step_kernel.py has the step kernel's)."""
    params = {"max_tokens": 32, "ignore_eos": True}
    prompts = [[token] for token in model.text[:rows]]
    gpu = engine(model, scheme, max_batch=16, step_kernel="off")
    together = generate(gpu, prompts, params, logprobs=True)
    for prompt, want in zip(prompts, together, strict=True):
        assert generate(gpu, [prompt], params, logprobs=True)[0] == want


def test_a_sequence_that_stops_early_leaves_the_others_alone(model: Model) -> None:
    gpu = engine(model, "fp16", step_kernel="off")
    prompts = [model.text[:9], model.text[30:47]]
    alone = [greedy(gpu, prompt, 40) for prompt in prompts]
    stop = {"stop_words": [alone[0][7:8]], "ignore_eos": True, "max_tokens": 40}
    stopped, other = generate(gpu, prompts, [stop, {"ignore_eos": True, "max_tokens": 40}])
    end = alone[0].index(alone[0][7]) + 1
    assert stopped == alone[0][:end]
    assert len(other) == 40


def test_slots_are_reused_while_steps_are_in_flight(model: Model) -> None:
    gpu = engine(model, "fp16", max_batch=2, step_kernel="off")
    prompts = [model.text[i * 7 : i * 7 + 5 + i] for i in range(6)]
    want = [greedy(gpu, prompt, 4 + 3 * i) for i, prompt in enumerate(prompts)]
    params = [{"max_tokens": 4 + 3 * i, "ignore_eos": True} for i in range(6)]
    assert generate(gpu, prompts, params) == want


def test_scores_do_not_depend_on_the_chunks(model: Model) -> None:
    ids = model.text[:150]
    whole = engine(model, "fp16", prefill_tokens=512)
    pieces = engine(model, "fp16", prefill_tokens=64)
    np.testing.assert_allclose(whole.score(ids)[0], pieces.score(ids)[0], atol=2e-2)
