"""Fake quantisation in torch: values rounded to a format's grid, the products in float.

At the runtime's own formats the grids are those of docs/numerics.md: symmetric, weights in groups
of 128 with scales rounded to fp16 (6 bits) or whole channels with fp32 scales (8 bits), and
activations in the same groups, or whole tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.eval.linear_input import input_of

if TYPE_CHECKING:
    import torch

FLOAT_BITS = 16
_TINY = 2.0**-100  # groups below it are zeros, so that no scale is subnormal
_SMALLEST_SCALE = 1e-5
# Inputs that --flex-linear-quant gives 8 bits.
_SENSITIVE = ("down_proj", "fc2")


@dataclass(frozen=True, kw_only=True)
class FakeFormat:
    """16 bits: not quantised. Groups along the inputs; None: one scale per channel or token.

    policy: a name or a file, which gives each input its bits instead of abits.
    """

    wbits: int = FLOAT_BITS
    abits: int = FLOAT_BITS
    w_group_size: int | None = None
    a_group_size: int | None = None
    symmetric: bool = False
    flex_linear_quant: bool = False
    policy: str | None = None

    @classmethod
    def w6ax(cls, policy: str) -> FakeFormat:
        """The runtime's scheme with this policy."""
        return cls(
            wbits=6, abits=6, w_group_size=128, a_group_size=128, symmetric=True, policy=policy
        )

    def __post_init__(self) -> None:
        if self.flex_linear_quant and self.abits != 6:
            raise ConfigError(
                f"--flex-linear-quant goes with --abits 6, and --abits is {self.abits}.",
                cause="it gives 8 bits to the inputs of down_proj and fc2, 6 to all others.",
                hint="--abits 6 --flex-linear-quant",
            )

    def describe(self) -> str:
        if self.policy is not None:
            return f"w6ax, policy {self.policy}"
        return (
            f"weights {_side(self.wbits, self.w_group_size, 'channel', self.symmetric)}, "
            f"activations {_side(self.abits, self.a_group_size, 'token', self.symmetric)}"
            + (", 8 bit into down_proj and fc2" if self.flex_linear_quant else "")
        )

    def act_bits(self, linears: Sequence[str]) -> list[int]:
        """Of the inputs of a whole model's linears, by their modules' names.

        Raises ConfigError for a policy that does not fit them.
        """
        if self.policy is not None:
            return _policy_bits(self.policy, linears)
        sensitive = _SENSITIVE if self.flex_linear_quant else ()
        return [8 if name.endswith(sensitive) else self.abits for name in linears]


def _policy_bits(policy: str, linears: Sequence[str]) -> list[int]:
    from flexq_ft.converter.policy import activation_bits, resolve_policy

    reads = [read for name in linears if (read := input_of(name)) is not None]
    layers = 1 + max(read.layer for read in reads)
    names = list(dict.fromkeys(read.linear for read in reads))
    resolved = resolve_policy(policy, num_layers=layers, linears=names)
    return [activation_bits(resolved, read.layer, read.linear) for read in reads]


def quantize_model(model: Any, form: FakeFormat) -> int:
    """Rounds weights and inputs of all linears in the decoder's layers, in place; how many.

    Embeddings and lm_head stay as they are. Raises ConfigError if there are no such linears.
    """
    import torch

    linears = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in f".{name}"
    ]
    if not linears:
        raise ConfigError(
            f"{type(model).__name__} has no linears in layers, so nothing can be simulated.",
            hint="a LLaMA-like model or OPT",
        )
    bits = form.act_bits([name for name, _ in linears])
    for (_, linear), act_bits in zip(linears, bits, strict=True):
        with torch.no_grad():
            linear.weight.copy_(
                round_weight(
                    linear.weight,
                    bits=form.wbits,
                    group=form.w_group_size,
                    symmetric=form.symmetric,
                )
            )
        linear.register_forward_pre_hook(_input_rounder(form, act_bits))
    return len(linears)


def _input_rounder(form: FakeFormat, bits: int) -> Any:
    def round_input(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x, *rest = inputs
        rounded = round_activation(x, bits=bits, group=form.a_group_size, symmetric=form.symmetric)
        return (rounded, *rest)

    return round_input


def round_weight(w: torch.Tensor, *, bits: int, group: int | None, symmetric: bool) -> torch.Tensor:
    """[outputs, inputs], in the type of w."""
    if bits == FLOAT_BITS:
        return w
    if not symmetric:
        return _in_groups(w, group, lambda x: _round_asymmetric(x, bits))
    return _in_groups(w, group, lambda x: _round_weight_group(x, bits, is_group=group is not None))


def round_activation(
    x: torch.Tensor, *, bits: int, group: int | None, symmetric: bool
) -> torch.Tensor:
    """[…, inputs], in the type of x."""
    if bits == FLOAT_BITS:
        return x
    if not symmetric:
        return _in_groups(x, group, lambda part: _round_asymmetric(part, bits))
    return _in_groups(x, group, lambda part: _round_activation_group(part, bits))


def _in_groups(x: torch.Tensor, group: int | None, rounded: Any) -> torch.Tensor:
    """rounded: of [rows, groups, group] in fp32. The last group of x may be shorter."""
    import torch

    inputs = x.shape[-1]
    size = inputs if group is None else min(group, inputs)
    whole = inputs // size * size
    parts = [x[..., :whole].reshape(*x.shape[:-1], -1, size)]
    if whole < inputs:
        parts.append(x[..., whole:].unsqueeze(-2))
    return torch.cat([rounded(part.float()).flatten(-2) for part in parts], dim=-1).to(x.dtype)


def _round_weight_group(w: torch.Tensor, bits: int, *, is_group: bool) -> torch.Tensor:
    import torch

    top = (1 << (bits - 1)) - 1
    largest = w.abs().amax(-1, keepdim=True)
    if is_group:
        scale = (largest / top).clamp_min(_SMALLEST_SCALE).half().float()
    else:
        scale = torch.where(largest == 0, torch.ones_like(largest), largest / top)
    return (w / scale).round().clamp(-top - 1, top) * scale


def _round_activation_group(x: torch.Tensor, bits: int) -> torch.Tensor:
    import torch

    top = (1 << (bits - 1)) - 1
    largest = x.abs().amax(-1, keepdim=True)
    is_zero = largest < _TINY
    safe = torch.where(is_zero, torch.ones_like(largest), largest)
    codes = (x * (top / safe)).round().clamp(-top - 1, top)
    return torch.where(is_zero, torch.zeros_like(x), codes * (safe / top))


def _round_asymmetric(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Between the group's minimum and maximum, with a whole zero point."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    top = (1 << bits) - 1
    scale = ((high - low) / top).clamp_min(_SMALLEST_SCALE)
    zero = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, top) - zero) * scale


def _side(bits: int, group: int | None, whole: str, symmetric: bool) -> str:
    if bits == FLOAT_BITS:
        return "not quantised"
    grid = "symmetric" if symmetric else "asymmetric"
    return f"{bits} bit {grid} " + (f"per {whole}" if group is None else f"in groups of {group}")
