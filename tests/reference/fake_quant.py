"""A Hugging Face model with the project's quantisation rules in its linears: a whole-model oracle.

Written from docs/numerics.md in torch, sharing no code with the C++ side or with the NumPy oracles.
Each quantised linear computes in the integers' own values (scale * code), in float32, one group
after the other, and rounds nothing else: meant for float32 models.
"""

from __future__ import annotations

import torch

GROUP = 128


def _grouped(x: torch.Tensor, group: int) -> torch.Tensor:
    """[rows, k] -> [rows, groups, group], the last group padded with zeros."""
    rows, k = x.shape
    groups = -(-k // group)
    padded = torch.zeros(rows, groups * group, dtype=torch.float32)
    padded[:, :k] = x
    return padded.reshape(rows, groups, group)


def weight_int6(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, k] -> codes [n, groups, 128], scales [n, groups] (fp16 values as float32)."""
    g = _grouped(w.float(), GROUP)
    scales = (g.abs().amax(-1) / 31).clamp_min(1e-5).half().float()
    return torch.round(g / scales[..., None]).clamp(-32, 31), scales


def weight_int8(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, k] -> codes [n, k], scales [n]."""
    top = w.float().abs().amax(-1)
    scales = torch.where(top == 0, torch.ones_like(top), top / 127)
    return torch.round(w.float() / scales[:, None]).clamp(-127, 127), scales


def activations(x: torch.Tensor, *, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[tokens, k] -> codes [tokens, groups, group], scales [tokens, groups]."""
    q = {6: 31.0, 8: 127.0}[bits]
    g = _grouped(x, group)
    top = g.abs().amax(-1)
    live = top >= 2.0**-100
    inverse = torch.where(live, q / torch.where(live, top, torch.ones_like(top)), 0.0)
    codes = torch.round(g * inverse[..., None]).clamp(-q - 1, q)
    return codes, torch.where(live, top / q, torch.zeros_like(top))


class QuantizedLinear(torch.nn.Module):
    """Drop-in for torch.nn.Linear. scheme: w8a16, w8a8 or w6ax; bits: 6, 8 or 16 (w6ax)."""

    def __init__(self, linear: torch.nn.Linear, scheme: str, bits: int) -> None:
        super().__init__()
        self.bias = linear.bias
        self.bits = bits
        self.group = GROUP
        w = linear.weight.detach()
        if scheme == "w6ax":
            codes, scales = weight_int6(w)
        else:
            flat, channel = weight_int8(w)
            self.group = w.shape[1]
            codes, scales = flat[:, None, :], channel[:, None]
        self.codes = codes.transpose(0, 1).contiguous()  # [groups, n, group]
        self.scales = scales.transpose(0, 1).contiguous()  # [groups, n]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = x.shape
        flat = x.reshape(-1, shape[-1])
        if self.bits == 16:
            a = _grouped(flat, self.group)
            a_scales = torch.ones(a.shape[:2])
        else:
            a, a_scales = activations(flat, bits=self.bits, group=self.group)
        y = torch.zeros(flat.shape[0], self.codes.shape[1])
        for g in range(self.codes.shape[0]):
            sums = a[:, g] @ self.codes[g].T  # exact: |sum| < 2^24 for int8 codes up to k = 1040
            y += self.scales[g] * a_scales[:, g, None] * sums
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*shape[:-1], -1)


def quantize_model(model: torch.nn.Module, scheme: str, policy_bits: dict[str, int]) -> None:
    """Replaces every linear of the decoder layers in place; lm_head stays as it is.

    policy_bits maps the end of a module name (down_proj, fc2) to its activation bits; the others
    have 6 (w6ax), 8 (w8a8) or 16 (w8a16).
    """
    default = {"w6ax": 6, "w8a8": 8, "w8a16": 16}[scheme]
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or ".layers." not in name:
            continue
        bits = default
        if scheme == "w6ax":
            bits = next((b for end, b in policy_bits.items() if name.endswith(end)), default)
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], QuantizedLinear(module, scheme, bits))


FLEXQ = {"down_proj": 8, "fc2": 8}
