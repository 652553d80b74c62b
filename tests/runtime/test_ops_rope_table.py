"""The rope table against the frequencies of transformers, for each scaling."""

from __future__ import annotations

import numpy as np
import pytest

from flexq_ft._native import ops

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

SCALINGS = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def hugging_face(scaling: str, theta: float, head_dim: int, positions: int) -> np.ndarray:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": scaling, **SCALINGS[scaling]}
    config = transformers.LlamaConfig(
        hidden_size=head_dim * 4,
        num_attention_heads=4,
        max_position_embeddings=positions,
        rope_theta=theta,
        rope_scaling=None if scaling == "default" else rope,
    )
    module = LlamaRotaryEmbedding(config)
    half = head_dim // 2
    cos, sin = module(torch.zeros(1, 1, 1), torch.arange(positions)[None])
    return np.concatenate([cos[0, :, :half].numpy(), sin[0, :, :half].numpy()], -1)


@pytest.mark.parametrize("scaling", list(SCALINGS))
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_table_is_that_of_transformers(scaling, theta, head_dim):
    positions = 4096
    given = dict(SCALINGS[scaling])
    if "original_max_position_embeddings" in given:
        given["original_max_positions"] = given.pop("original_max_position_embeddings")
    got = ops.rope_table(head_dim=head_dim, positions=positions, theta=theta, type=scaling, **given)
    want = hugging_face(scaling, theta, head_dim, positions)
    # A frequency one ulp off turns position 4095 by 2.4e-4 at most.
    assert np.abs(got[:64] - want[:64]).max() <= 8e-6
    assert np.abs(got - want).max() <= 5e-4
    same = (np.abs(got - want) <= 1.2e-7).mean(0)
    assert (same > 0.99).mean() > 0.5, "most frequencies are equal to the last bit"


def test_angles_are_accurate_far_out():
    got = ops.rope_table(head_dim=2, positions=100000)[99999]
    np.testing.assert_allclose(got, [np.cos(99999.0), np.sin(99999.0)], atol=1e-7)
