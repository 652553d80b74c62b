"""The GPU engine against the CPU engine on the same folders (docs/numerics.md, section 6)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from tests.e2e.conftest import Model
from tests.reference.divergence import GREEDY_COMPARABLE, assert_greedy_equal_or_tied
from tests.tools.engines import greedy

pytestmark = pytest.mark.skipif(not _native.gpus(), reason="no GPU, or a build without CUDA")

STEPS = 64
CASES = [
    *(("fp16", "fp16"), ("bf16", "bf16"), ("w8a16", "fp16"), ("w8a16", "bf16")),
    *(("w6a16", "fp16"), ("w6a16", "bf16")),
]
SIX_BITS = ["flexq", "w6a6", "w6a8", "w6a16"]
# Perplexity of the two devices on the same windows.
LIMITS = {"fp16": 1e-3, "bf16": 1e-3, "w8a16": 1e-3, "w6a16": 1e-3, "w8a8": 3e-3, "flexq": 3e-3}


def both(model: Model, scheme: str, dtype: str, **options: Any) -> tuple[Any, Any]:
    return (
        model.engine(scheme, dtype=dtype, **options),
        model.engine(scheme, dtype=dtype, device="cuda", **options),
    )


def prompts(model: Model) -> list[list[int]]:
    return [model.text[start : start + length] for start, length in ((0, 15), (40, 1), (90, 130))]


@pytest.mark.parametrize("scheme,dtype", CASES)
def test_greedy_tokens_are_those_of_the_cpu(model: Model, scheme: str, dtype: str) -> None:
    assert scheme in GREEDY_COMPARABLE
    cpu, gpu = both(model, scheme, dtype)
    for prompt in prompts(model):
        want, got = greedy(cpu, prompt, STEPS), greedy(gpu, prompt, STEPS)
        # At the same prefix: the CPU's tokens, which both see up to the first difference.
        logits = [engine.forward(prompt + want)[len(prompt) - 1 : -1] for engine in (gpu, cpu)]
        assert_greedy_equal_or_tied(got, want, *logits)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("scheme", "tokens"),
    # Of six bits also as many as take the kernels for prompts.
    [("w8a8", 24), ("w8a16", 24), ("fp16", 24), *((s, n) for s in SIX_BITS for n in (24, 130))],
)
def test_replay_gives_the_products_of_the_cpu(
    model: Model, scheme: str, tokens: int, dtype: str
) -> None:
    cpu, gpu = both(model, scheme if scheme != "fp16" else dtype, dtype)
    for record in cpu.trace(model.text[:tokens]):
        # Codes are bit-equal, so quantised products differ by the rounding of their scales only.
        got = gpu.run_linear(record["name"], record["x"])
        limit = 1e-5 * max(float(np.abs(record["y"]).max()), 1e-6)
        assert float(np.abs(got - record["y"]).max()) <= limit, record["name"]


@pytest.mark.parametrize("tokens", [1, 24, 100])  # the head takes at most 128 at a time
@pytest.mark.parametrize(
    "scheme,dtype", [*CASES, ("w8a8", "fp16"), ("flexq", "fp16"), ("w6a6", "bf16")]
)
def test_a_trace_of_the_gpu_replays_on_the_gpu(
    model: Model, scheme: str, dtype: str, tokens: int
) -> None:
    """What the fused ops made on the way is what the linears give when they are run alone."""
    gpu = model.engine(scheme, dtype=dtype, device="cuda")
    for record in gpu.trace(model.text[:tokens]):
        np.testing.assert_array_equal(
            gpu.run_linear(record["name"], record["x"]), record["y"], err_msg=record["name"]
        )


@pytest.mark.parametrize("scheme,dtype", [*CASES, ("w8a8", "fp16"), ("flexq", "fp16")])
def test_perplexity_is_that_of_the_cpu(
    model: Model,
    scheme: str,
    dtype: str,
    measured: Callable[[str], None],
    request: pytest.FixtureRequest,
) -> None:
    if not model.trained:
        pytest.skip("random weights have no perplexity to keep")
    windows = deciding_windows(model, scheme)
    gpu = model.engine(scheme, dtype=dtype, device="cuda")
    ours = perplexity(gpu, windows)
    theirs = cpu_perplexity(
        model, scheme, dtype, windows, request.config.getoption("--cpu-results")
    )
    error = abs(ours / theirs - 1.0)
    tokens = sum(len(w) for w in windows)
    measured(
        f"{model.name} {scheme} {dtype}: {tokens} tokens, GPU {ours:.6g}, CPU {theirs:.6g}"
        f" ({100 * error:.4f} %)"
    )
    assert error <= LIMITS[scheme]


def deciding_windows(model: Model, scheme: str) -> list[list[int]]:
    """With rounded activations single windows of a large model are a percent apart either way, so
    that only the whole text decides (docs/numerics.md, section 6)."""
    length = min(2048, model.positions)
    if not model.is_large:
        return list(model.windows(length, -(-30_000 // length)))
    whole = len(model.text) // length
    return list(model.windows(length, 16 if scheme in GREEDY_COMPARABLE else whole))


def perplexity(engine: Any, windows: list[list[int]]) -> float:
    losses = [-engine.score(ids)[0].astype(np.float64) for ids in windows]
    return float(np.exp(np.concatenate(losses).mean()))


def cpu_perplexity(
    model: Model, scheme: str, dtype: str, windows: list[list[int]], stored: str | None
) -> float:
    """From the file of --cpu-results if it has the same windows, else computed (and stored)."""
    key = f"{model.name} {scheme} {dtype} {len(windows)}x{len(windows[0])}"
    path = Path(stored) if stored else None
    results = json.loads(path.read_text()) if path and path.exists() else {}
    if key in results:
        return float(results[key]["perplexity"])
    value = perplexity(model.engine(scheme, dtype=dtype), windows)
    if path:
        results[key] = {"perplexity": value, "commit": _native.build_info()["commit"]}
        path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    return value
