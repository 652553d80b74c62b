"""A Hugging Face model whose linears' inputs are rounded one by one, run again from there only.

In torch, by the grids of w6ax: activations symmetric in groups of 128. A layer before the one that
changes returns what it returned, so that a run costs the layers from there on and the head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flexq_ft.converter.shards import GROUP_SIZE
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.eval.fake_quant import FLOAT_BITS, round_activation, round_weight
from flexq_ft.orchestrate.eval.linear_input import LinearInput, input_of

if TYPE_CHECKING:
    import torch


Bits = Mapping[LinearInput, int]


class ResumedModel:
    """macs: of each input, in the model's order, the multiply-adds of a token in the linears that
    read it."""

    def __init__(self, model: Any) -> None:
        """Takes the model over. Raises ConfigError unless its layers' linears are those of LLaMA
        or OPT."""
        import torch

        self.macs: dict[LinearInput, int] = {}
        self._model = model
        self._linears: list[Any] = []
        self._bits: dict[LinearInput, int] = {}
        self._outputs: dict[int, Any] = {}  # of the layers of the window that was started
        self._window: Any = None
        self._first = 0
        self._keeps = False
        for name, module in model.named_modules():
            if not isinstance(module, torch.nn.Linear) or (read := input_of(name)) is None:
                continue
            self.macs[read] = self.macs.get(read, 0) + module.weight.numel()
            self._linears.append(module)
            module.register_forward_pre_hook(self._rounder(read))
        if not self.macs:
            raise ConfigError(
                f"{type(model).__name__} has no linears in layers, so none can be sensitive.",
                hint="a LLaMA-like model or OPT",
            )
        for name, module in model.named_modules():
            if match := re.search(r"(?:^|\.)layers\.(\d+)$", name):
                module.forward = self._resumed(int(match[1]), module.forward)

    @property
    def linears(self) -> tuple[str, ...]:
        """A layer's, as policies name them, in the model's order."""
        return tuple(dict.fromkeys(read.linear for read in self.macs))

    @property
    def num_layers(self) -> int:
        return 1 + max(read.layer for read in self.macs)

    def round_weights(self) -> None:
        """To 6 bits in groups of 128, in place and for good."""
        import torch

        with torch.no_grad():
            for linear in self._linears:
                weight = linear.weight
                weight.copy_(round_weight(weight, bits=6, group=GROUP_SIZE, symmetric=True))

    def start(self, ids: list[int], bits: Bits) -> torch.Tensor:
        """Log-probabilities [tokens, vocab] of a window, in fp32. bits: of inputs that are rounded;
        8 or 6."""
        import torch

        self._window = torch.tensor([ids], device=self._model.device)
        self._bits, self._first, self._keeps = dict(bits), 0, True
        try:
            return self._run()
        finally:
            self._keeps = False

    def change(self, read: LinearInput, bits: int) -> torch.Tensor:
        """The same of the window that was started, but for the bits of one input."""
        before = self._bits
        self._bits, self._first = {**before, read: bits}, read.layer
        try:
            return self._run()
        finally:
            self._bits, self._first = before, 0

    def _run(self) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            logits = self._model(self._window, use_cache=False).logits[0]
            return torch.log_softmax(logits.float(), -1)

    def _rounder(self, read: LinearInput) -> Any:
        def round_input(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            x, *rest = inputs
            bits = self._bits.get(read, FLOAT_BITS)
            return (round_activation(x, bits=bits, group=GROUP_SIZE, symmetric=True), *rest)

        return round_input

    def _resumed(self, layer: int, forward: Any) -> Any:
        def resumed(*args: Any, **kwargs: Any) -> Any:
            if layer < self._first:
                return self._outputs[layer]
            output = forward(*args, **kwargs)
            if self._keeps:
                self._outputs[layer] = output
            return output

        return resumed
