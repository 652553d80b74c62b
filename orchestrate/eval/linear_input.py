"""The inputs that a policy gives bits, by the names of a Hugging Face model's modules."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flexq_ft.errors import ConfigError

# End of a module's name -> the linear as policies name it; those of one name share their input.
_LINEARS = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "o", "out_proj": "o",
    "gate_proj": "gate_up", "up_proj": "gate_up", "down_proj": "down", "fc1": "fc1", "fc2": "fc2",
}  # fmt: skip
_MODULE = re.compile(r"(?:^|\.)layers\.(\d+)\.(?:.*\.)?(\w+)$")


@dataclass(frozen=True, order=True)
class LinearInput:
    """One input, by layer and linear."""

    layer: int
    linear: str

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.linear}"


def input_of(module: str) -> LinearInput | None:
    """What the linear of this name reads; None outside of the layers. Raises ConfigError unless
    it is one of LLaMA's or OPT's."""
    match = _MODULE.search(module)
    if match is None:
        return None
    layer, end = match.groups()
    if end not in _LINEARS:
        raise ConfigError(
            f"{module} is none of the linears that a policy gives bits.",
            cause=f"known are {', '.join(_LINEARS)}.",
            hint="a LLaMA-like model or OPT",
        )
    return LinearInput(int(layer), _LINEARS[end])
