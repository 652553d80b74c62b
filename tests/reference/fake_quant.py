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


def _groups(k: int, group: int, edges: list[int]) -> list[slice]:
    """Groups along K that restart at every edge."""
    bounds = [*edges, k]
    return [
        slice(begin, min(begin + group, end))
        for start, end in zip([0, *edges], bounds, strict=True)
        for begin in range(start, end, group)
    ]


class QuantizedLinear(torch.nn.Module):
    """Drop-in for torch.nn.Linear. scheme: w8a16, w8a8 or w6ax; bits: 6, 8 or 16 (w6ax).

    edges: where ranks cut K inside a group, so that groups restart there (w6ax).
    """

    def __init__(
        self, linear: torch.nn.Linear, scheme: str, bits: int, edges: list[int] | None = None
    ) -> None:
        super().__init__()
        self.bias = linear.bias
        self.bits = bits
        w = linear.weight.detach()
        k = w.shape[1]
        if scheme == "w6ax":
            self.groups = _groups(k, GROUP, edges or [])
            parts = [weight_int6(w[:, g]) for g in self.groups]
            self.codes = [
                codes[:, 0, : g.stop - g.start]
                for g, (codes, _) in zip(self.groups, parts, strict=True)
            ]
            self.scales = [scales[:, 0] for _, scales in parts]
        else:
            self.groups = [slice(0, k)]
            codes, scales = weight_int8(w)
            self.codes, self.scales = [codes], [scales]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = x.shape
        flat = x.reshape(-1, shape[-1])
        y = torch.zeros(flat.shape[0], self.codes[0].shape[0])
        for g, codes, scales in zip(self.groups, self.codes, self.scales, strict=True):
            if self.bits == 16:
                y += scales * (flat[:, g] @ codes.T)
                continue
            a, a_scales = activations(flat[:, g], bits=self.bits, group=g.stop - g.start)
            # Exact: |sum| < 2^24 for int8 codes up to k = 1040.
            y += scales * a_scales * (a[:, 0] @ codes.T)
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*shape[:-1], -1)


def quantize_model(
    model: torch.nn.Module,
    scheme: str,
    policy_bits: dict[str, int],
    *,
    o_edges: list[int] | None = None,
) -> None:
    """Replaces every linear of the decoder layers in place; lm_head stays as it is.

    o_edges: where o_proj (out_proj) is cut among ranks inside a group.

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
        edges = o_edges if name.endswith(("o_proj", "out_proj")) else None
        setattr(parent, name.rpartition(".")[2], QuantizedLinear(module, scheme, bits, edges))


FLEXQ = {"down_proj": 8, "fc2": 8}
