"""config.json of Transformers 4 and 5, class defaults, and refusals by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from flexq_ft.converter.architectures import SUPPORTED, parse_hf_config
from flexq_ft.errors import WeightError

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}


def parse(model_type: str = "llama", **keys: Any) -> Any:
    return parse_hf_config({"model_type": model_type, **SIZES, **keys}, name="m")


def parse_opt(**keys: Any) -> Any:
    sizes = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
    return parse_hf_config({"model_type": "opt", "ffn_dim": 96, **sizes, **keys}, name="m")


def test_rope_of_both_versions_is_the_same() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    v4 = parse(rope_theta=500000.0, rope_scaling={"rope_type": "llama3", **scaling})
    v5 = parse(rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **scaling})
    assert v4.rope == v5.rope
    assert (v5.rope.type, v5.rope.theta, v5.rope.original_max_positions) == ("llama3", 5e5, 64)
    old = parse(rope_scaling={"type": "linear", "factor": 2.0})
    assert (old.rope.type, old.rope.factor, old.rope.theta) == ("linear", 2.0, 10000.0)
    assert parse(rope_scaling=None).rope.type == "default"


def test_class_defaults_are_transformers() -> None:
    """What an absent key means is what the model's own class says."""
    transformers = pytest.importorskip("transformers")
    classes = {
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "qwen2": transformers.Qwen2Config,
    }
    for model_type, cls in classes.items():
        heads = {"num_attention_heads": 32, "hidden_size": 64}
        mine = parse(model_type, vocab_size=200, **heads)
        theirs = cls(**SIZES | heads)
        assert mine.num_kv_heads == theirs.num_key_value_heads, model_type
        assert mine.max_positions == theirs.max_position_embeddings
        assert mine.norm_eps == theirs.rms_norm_eps
        assert mine.tie_word_embeddings == theirs.tie_word_embeddings
        assert mine.sliding_window == theirs.sliding_window if model_type != "llama" else True
        assert list(mine.eos_ids) == [i for i in [theirs.eos_token_id] if i is not None]
    opt = transformers.OPTConfig()
    assert parse_opt().max_positions == opt.max_position_embeddings
    assert parse_opt().tie_word_embeddings == opt.tie_word_embeddings
    assert (parse_opt().bos_id, parse_opt().activation) == (opt.bos_token_id, "relu")


def test_end_tokens_of_the_generation_config_win() -> None:
    raw = {"model_type": "llama", **SIZES, "eos_token_id": 5}
    config = parse_hf_config(raw, name="m", generation={"eos_token_id": [7, 5, 7]})
    assert config.eos_ids == (7, 5)
    assert parse_hf_config(raw, name="m", generation={}).eos_ids == (5,)


def test_a_model_without_a_start_token_starts_from_its_end_token() -> None:
    assert parse("qwen2", num_key_value_heads=4, bos_token_id=None, eos_token_id=9).bos_id == 9


def test_biases_follow_the_model() -> None:
    qwen = parse("qwen2", num_key_value_heads=2)
    assert (qwen.qkv_bias, qwen.dense_bias, qwen.ffn_bias) == (True, False, False)
    llama = parse(attention_bias=True, mlp_bias=True)
    assert (llama.qkv_bias, llama.dense_bias, llama.ffn_bias) == (True, True, True)


def test_a_window_that_is_switched_off_is_none() -> None:
    assert parse("mistral", num_key_value_heads=4).sliding_window == 4096
    assert parse("mistral", num_key_value_heads=4, sliding_window=None).sliding_window is None
    assert parse("qwen2", num_key_value_heads=4, sliding_window=64).sliding_window is None


def test_unsupported_architecture_names_those_that_are() -> None:
    with pytest.raises(WeightError, match="'mixtral' of m is not supported") as caught:
        parse("mixtral")
    assert all(name in caught.value.hint for name in SUPPORTED)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("parameters", [None, {"rope_type": "default"}, {"rope_theta": 77.0}])
@pytest.mark.parametrize("scaling", [None, {}, {"type": "linear", "factor": 2.0}])
@pytest.mark.parametrize("theta", [{}, {"rope_theta": 500.0}])
def test_of_both_kinds_of_rope_keys_those_hold_that_hold_in_transformers(
    parameters: Any, scaling: Any, theta: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    keys = {"rope_parameters": parameters, "rope_scaling": scaling, **theta}
    expected = transformers.LlamaConfig(**copy.deepcopy(keys)).rope_parameters
    rope = parse(**keys).rope
    assert (rope.theta, rope.type) == (expected["rope_theta"], expected["rope_type"])
    assert rope.factor == expected.get("factor", 1.0)


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope", "su"])
def test_other_rope_types_are_refused_by_name(kind: str) -> None:
    with pytest.raises(WeightError, match=f"rope type '{kind}'"):
        parse(rope_scaling={"type": kind, "factor": 2.0})


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"do_layer_norm_before": False}, "LayerNorm after the block"),
        ({"word_embed_proj_dim": 32}, "project_in/project_out"),
        ({"enable_bias": False}, "enable_bias"),
        ({"_remove_final_layer_norm": True}, "no final norm"),
        ({"activation_function": "tanh"}, "'tanh'"),
    ],
)
def test_opt_variants_are_refused_by_name(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(WeightError, match=named):
        parse_opt(**keys)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"hidden_act": ["silu"]}, r"\['silu'\]"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"quantization_config": "gptq"}, "unknown method"),
        ({"rope_parameters": None, "rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"num_hidden_layers": 1 << 31}, "not a whole number from 1 to 2,147,483,647"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_key_value_heads": 3}, "not a multiple of the 3"),
        ({"hidden_size": 66}, "66 is not a multiple of the 4 heads"),
        ({"eos_token_id": 320}, "eos_token_id 320 is outside"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"partial_rotary_factor": 0.5}, "a part of each head"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "by layer type"),
    ],
)
def test_faulty_values_are_named(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(WeightError, match=named):
        parse(**keys)


def test_a_missing_size_is_not_guessed() -> None:
    raw = {"model_type": "llama", **SIZES}
    del raw["intermediate_size"]
    with pytest.raises(WeightError, match="no key 'intermediate_size'"):
        parse_hf_config(raw, name="m")
