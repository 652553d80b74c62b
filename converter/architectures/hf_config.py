"""ModelConfig from a Hugging Face config.json, of Transformers 4 or 5.

Sizes must be written in the file. Other keys that are absent take the default of the model's own
configuration class (the tables below), which is what Hugging Face would run; nothing else is
guessed, and what the runtime cannot run is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flexq_ft.converter.model_config import ModelConfig, RopeConfig
from flexq_ft.errors import WeightError

__all__ = ["SUPPORTED", "parse_hf_config"]

_ROPE_TYPES = ("default", "linear", "llama3")

# Class defaults of Transformers (configuration_<model>.py), for keys that a file may leave out.
_LLAMA_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
_MISTRAL_DEFAULTS: dict[str, Any] = {
    **_LLAMA_DEFAULTS,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "sliding_window": 4096,
}
_QWEN2_DEFAULTS: dict[str, Any] = {
    **_LLAMA_DEFAULTS,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "bos_token_id": None,
    "eos_token_id": None,
    "use_sliding_window": False,
    "sliding_window": 4096,
}
_OPT_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 2048,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "_remove_final_layer_norm": False,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
_LAYER_NORM_EPS = 1e-5  # torch.nn.LayerNorm's default; OPT's configuration has no key for it
_ROPE_THETA = 10000.0
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu"}


class _Config:
    """A config.json with typed, named access; collects nothing, raises at the first fault."""

    def __init__(self, raw: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> None:
        self.raw = raw
        self.name = name
        self._defaults = defaults

    def get(self, key: str) -> Any:
        return self.raw[key] if key in self.raw else self._defaults.get(key)

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise self.fault(f"has no key {key!r}")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            raise self.fault(f"{key} is {value!r}, not a whole number from 1 to {(1 << 31) - 1:,}")
        return value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.fault(f"{key} is {value!r}, not true or false")
        return value

    def number(self, key: str) -> float:
        return positive_number(self.get(key), key, self.name)

    def fault(self, what: str, *, hint: str = "check config.json") -> WeightError:
        return WeightError(f"config.json of {self.name}: {what}", hint=hint)

    def refuse(self, what: str) -> WeightError:
        return WeightError(
            f"{self.name} has {what}, which is not supported",
            hint=f"supported: {supported_list()}",
        )


def positive_number(value: Any, key: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise WeightError(
            f"config.json of {name}: {key} is {value!r}, not a positive number",
            hint="check config.json",
        )
    return float(value)


def parse_hf_config(
    raw: Mapping[str, Any], *, name: str, generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """raw: config.json; generation: generation_config.json, whose eos_token_id wins as in HF.

    Raises WeightError for unsupported architectures and features, and for faulty values.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in SUPPORTED:
        raise WeightError(
            f"architecture {model_type!r} of {name} is not supported",
            hint=f"supported: {supported_list()}",
        )
    if quantised := raw.get("quantization_config"):
        known = isinstance(quantised, Mapping) and quantised.get("quant_method")
        method = known or "unknown method"
        raise WeightError(
            f"{name} is quantised already ({method})", hint="convert the float checkpoint"
        )
    defaults, parse = _PARSERS[model_type]
    config = parse(_Config(raw, defaults, name), model_type)
    stop = (generation or {}).get("eos_token_id")
    return config if stop is None else _with_eos(config, stop)


def supported_list() -> str:
    return ", ".join(SUPPORTED)


def _parse_llama(config: _Config, model_type: str) -> ModelConfig:
    act = config.get("hidden_act")
    if not isinstance(act, str) or _ACTIVATIONS.get(act) != "silu":
        raise config.refuse(f"the activation {act!r}")
    heads = config.size("num_attention_heads")
    hidden = config.size("hidden_size")
    if config.get("head_dim") is None and hidden % heads:
        raise config.fault(f"hidden_size {hidden} is not a multiple of the {heads} heads")
    kv_heads = config.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.fault(f"{heads} heads are not a multiple of the {kv_heads} key/value heads")
    head_dim = config.size("head_dim", hidden // heads)
    if head_dim % 2:
        raise config.fault(f"head_dim {head_dim} is odd: rotary embedding needs pairs")
    attention_bias = model_type == "llama" and config.flag("attention_bias")
    return ModelConfig(
        name=config.name,
        architecture="llama",
        vocab_size=config.size("vocab_size"),
        hidden_size=hidden,
        num_layers=config.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        inter_size=config.size("intermediate_size"),
        max_positions=config.size("max_position_embeddings"),
        norm="rms",
        norm_eps=config.number("rms_norm_eps"),
        activation="silu",
        gated_ffn=True,
        rope=_rope(config),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        qkv_bias=model_type == "qwen2" or attention_bias,
        dense_bias=attention_bias,
        ffn_bias=model_type == "llama" and config.flag("mlp_bias"),
        sliding_window=_sliding_window(config, model_type),
        bos_id=_bos(config),
        eos_ids=_eos(config, config.get("eos_token_id")),
    )


def _parse_opt(config: _Config, model_type: str) -> ModelConfig:
    hidden = config.size("hidden_size")
    heads = config.size("num_attention_heads")
    if hidden % heads:
        raise config.fault(f"hidden_size {hidden} is not a multiple of the {heads} heads")
    if not config.flag("do_layer_norm_before"):
        raise config.refuse("LayerNorm after the block (do_layer_norm_before = false)")
    projected = config.size("word_embed_proj_dim", hidden)
    if projected != hidden:
        raise config.refuse(
            f"projected embeddings (project_in/project_out, word_embed_proj_dim {projected} with"
            f" hidden_size {hidden})"
        )
    if not config.flag("enable_bias"):
        raise config.refuse("linears without biases (enable_bias = false)")
    if not config.flag("layer_norm_elementwise_affine"):
        raise config.refuse("norms without weights (layer_norm_elementwise_affine = false)")
    if config.flag("_remove_final_layer_norm"):
        raise config.refuse("no final norm (_remove_final_layer_norm = true)")
    act = config.get("activation_function")
    if act not in ("relu", "gelu"):
        raise config.refuse(f"the activation {act!r}")
    return ModelConfig(
        name=config.name,
        architecture="opt",
        vocab_size=config.size("vocab_size"),
        hidden_size=hidden,
        num_layers=config.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        inter_size=config.size("ffn_dim"),
        max_positions=config.size("max_position_embeddings"),
        norm="layer",
        norm_eps=_LAYER_NORM_EPS,
        activation=_ACTIVATIONS[act],
        gated_ffn=False,
        rope=None,
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        qkv_bias=True,
        dense_bias=True,
        ffn_bias=True,
        sliding_window=None,
        bos_id=_bos(config),
        eos_ids=_eos(config, config.get("eos_token_id")),
    )


def _rope(config: _Config) -> RopeConfig:
    """From rope_parameters (Transformers 5), or rope_theta and rope_scaling (4); of both scalings
    the latter, as in transformers."""
    name = "rope_scaling" if config.raw.get("rope_scaling") else "rope_parameters"
    given = config.raw.get(name) or {}
    if not isinstance(given, Mapping):
        raise config.fault(f"{name} is {given!r}, not an object")
    parameters = {"rope_theta": config.raw.get("rope_theta", _ROPE_THETA), **given}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise config.refuse("rope parameters that differ by layer type")
    if kind not in _ROPE_TYPES:
        raise WeightError(
            f"rope type {kind!r} of {config.name} is not supported",
            hint=f"supported: {', '.join(_ROPE_TYPES)}",
        )
    partial = parameters.get("partial_rotary_factor", config.raw.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise config.refuse(f"rotary embedding of a part of each head (factor {partial})")

    def number(key: str) -> float:
        return positive_number(parameters.get(key), f"rope {key}", config.name)

    theta = positive_number(parameters["rope_theta"], "rope_theta", config.name)
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, type="linear", factor=number("factor"))
    original = number("original_max_position_embeddings")
    return RopeConfig(
        theta=theta,
        type="llama3",
        factor=number("factor"),
        low_freq_factor=number("low_freq_factor"),
        high_freq_factor=number("high_freq_factor"),
        original_max_positions=int(original),
    )


def _sliding_window(config: _Config, model_type: str) -> int | None:
    if model_type == "llama":
        return None
    if model_type == "qwen2" and not config.flag("use_sliding_window"):
        return None
    return None if config.get("sliding_window") is None else config.size("sliding_window")


def _bos(config: _Config) -> int:
    """The start token; of a model without one, its first end token, as FasterTransformer has it
    for GPT-2 (0 where there is neither: nothing can need it then)."""
    value = config.get("bos_token_id")
    if value is not None:
        return _token_id(config, "bos_token_id", value)
    return next(iter(_eos(config, config.get("eos_token_id"))), 0)


def _eos(config: _Config, value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    ids = (_token_id(config, "eos_token_id", item) for item in values)
    return tuple(dict.fromkeys(ids))


def _with_eos(config: ModelConfig, value: Any) -> ModelConfig:
    raw = _Config({"vocab_size": config.vocab_size}, {}, config.name)
    return replace(config, eos_ids=_eos(raw, value))


def _token_id(config: _Config, key: str, value: Any) -> int:
    vocab = config.size("vocab_size")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab:
        raise config.fault(f"{key} {value!r} is outside the vocabulary of {vocab}")
    return value


_PARSERS: dict[str, tuple[dict[str, Any], Callable[[_Config, str], ModelConfig]]] = {
    "llama": (_LLAMA_DEFAULTS, _parse_llama),
    "mistral": (_MISTRAL_DEFAULTS, _parse_llama),
    "qwen2": (_QWEN2_DEFAULTS, _parse_llama),
    "opt": (_OPT_DEFAULTS, _parse_opt),
}
SUPPORTED = tuple(_PARSERS)
