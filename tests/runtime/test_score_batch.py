"""Texts scored side by side: what each gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.converter import ConvertOptions, convert
from flexq_ft.errors import ConfigError
from tests.tools.checkpoints import make_checkpoint
from tests.tools.gpus import two_devices

VOCAB = 320
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "inter": 272},
    "opt": {"family": "opt", "hidden": 128, "heads": 2, "inter": 272, "tied": True},
}

# At most four texts and 32 tokens side by side: some fill a step, one is too long for any, one has
# a token that nothing predicts.
LENGTHS = (9, 7, 16, 5, 40, 32, 2, 1, 3, 3, 3, 31)
FIRST = (1, 6, 3, 5, 20, 1, 1, 1, 2, 3, 1, 30)


def folder(root: Path, kind: str) -> str:
    make_checkpoint(root / "hf", vocab=VOCAB, positions=64, **KINDS[kind])
    convert(root / "hf", root / "ft", ConvertOptions(scheme="fp32"))
    return str(root / "ft" / "1-gpu")


def some_ids(count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(0).integers(3, VOCAB, count)]


@pytest.mark.parametrize("device", two_devices())
@pytest.mark.parametrize("kind", KINDS)
def test_texts_side_by_side_score_as_alone(tmp_path: Path, kind: str, device: str) -> None:
    dtype = "fp32" if device == "cpu" else "fp16"
    engine = _native.Engine(
        folder(tmp_path, kind),
        device=device, dtype=dtype, max_batch=4, max_len=64, prefill_tokens=32,
    )  # fmt: skip
    ids = some_ids(sum(LENGTHS))
    ends = np.cumsum(LENGTHS)
    texts = [ids[end - length : end] for end, length in zip(ends, LENGTHS, strict=True)]
    scores = engine.score_batch(texts, list(FIRST))
    assert len(scores) == len(texts)
    for text, first, (logprobs, argmax) in zip(texts, FIRST, scores, strict=True):
        alone, likeliest = engine.score(text, first)
        assert logprobs.shape == argmax.shape == (len(text) - first,)
        np.testing.assert_allclose(logprobs, alone, rtol=0, atol=1e-5 if device == "cpu" else 2e-2)
        if device == "cpu":
            np.testing.assert_array_equal(argmax, likeliest)
    assert engine.score_batch([], []) == []


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    engine = _native.Engine(folder(tmp_path, "opt"))
    with pytest.raises(ConfigError, match="from 4 on cannot be scored of 3"):
        engine.score_batch([some_ids(5), some_ids(3)], [1, 4])
    with pytest.raises(ConfigError, match="2 texts and 1 first tokens"):
        engine.score_batch([some_ids(5), some_ids(3)], [1])
