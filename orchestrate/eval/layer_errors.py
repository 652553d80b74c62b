"""How an error grows through the layers: the inputs of every linear, against the reference's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

# Of the first window: enough for a norm, and the inputs of a large model stay in memory.
TOKENS = 256

Inputs = Mapping[str, NDArray[np.float32]]


def relative_errors(reference: Inputs, ours: Inputs) -> list[dict[str, Any]]:
    """Of each linear, in the model's order: |x - reference| / |reference|, Frobenius norms.

    Both: inputs [tokens, k] by name (layers.0.qkv, …, lm_head), before they are quantised.
    """
    return [
        {
            "linear": name,
            "relative_error": float(
                np.linalg.norm(ours[name] - x) / max(float(np.linalg.norm(x)), 1e-30)
            ),
        }
        for name, x in reference.items()
    ]


def table(errors: list[dict[str, Any]]) -> Table:
    """A row a layer, a column a linear."""
    layers: dict[str, dict[str, float]] = {}
    for entry in errors:
        layer, _, linear = entry["linear"].rpartition(".")
        layers.setdefault(layer.removeprefix("layers."), {})[linear] = entry["relative_error"]
    columns = list(dict.fromkeys(linear for row in layers.values() for linear in row))
    shown = Table(title="Relative error of the linears' inputs")
    shown.add_column("layer", justify="right")
    for linear in columns:
        shown.add_column(linear, justify="right")
    for layer, row in layers.items():
        shown.add_row(layer, *(f"{row[c]:.4f}" if c in row else "" for c in columns))
    return shown
