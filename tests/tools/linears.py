"""The weights of a Hugging Face decoder under this project's names for its linears."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Weight = tuple[NDArray[np.float32], NDArray[np.float32] | None]


def _stack(*linears: Any) -> Weight:
    w = np.concatenate([m.weight.detach().float().numpy() for m in linears])
    if linears[0].bias is None:
        return w, None
    return w, np.concatenate([m.bias.detach().float().numpy() for m in linears])


def layer_weights(model: Any) -> dict[str, Weight]:
    """name -> ([n, k], bias [n] or None); row-parallel biases are the layer's, not the linear's."""
    out: dict[str, Weight] = {}
    if model.config.model_type == "opt":
        for i, layer in enumerate(model.model.decoder.layers):
            a = layer.self_attn
            out[f"layers.{i}.qkv"] = _stack(a.q_proj, a.k_proj, a.v_proj)
            out[f"layers.{i}.o"] = (_stack(a.out_proj)[0], None)
            out[f"layers.{i}.fc1"] = _stack(layer.fc1)
            out[f"layers.{i}.fc2"] = (_stack(layer.fc2)[0], None)
        return out
    for i, layer in enumerate(model.model.layers):
        a, mlp = layer.self_attn, layer.mlp
        out[f"layers.{i}.qkv"] = _stack(a.q_proj, a.k_proj, a.v_proj)
        out[f"layers.{i}.o"] = (_stack(a.o_proj)[0], None)
        out[f"layers.{i}.gate_up"] = _stack(mlp.gate_proj, mlp.up_proj)
        out[f"layers.{i}.down"] = (_stack(mlp.down_proj)[0], None)
    return out
