"""Which inputs to give 8 bits: a knapsack of gains and multiply-adds, and the policy as YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flexq_ft.converter.policy import POLICY_SCHEMA
from flexq_ft.orchestrate.eval.linear_input import LinearInput

# Multiply-adds are counted in their greatest common divisor, or in this part of them all.
_FINEST = 1 << 16


class Frontier:
    """For every budget of multiply-adds the inputs whose gains sum to most: saved[i] of them fit
    into the share i / (len(saved) - 1)."""

    def __init__(self, macs: Mapping[LinearInput, int], gains: Mapping[LinearInput, float]) -> None:
        """gains: shares, which sum to 1; an input without one is never chosen."""
        total = sum(macs.values())
        unit = max(math.gcd(*macs.values()), -(-total // _FINEST))
        self._macs = macs
        self._costs = {read: -(-count // unit) for read, count in macs.items()}
        size = max(sum(self._costs.values()), 1)
        self._takes: dict[LinearInput, NDArray[np.bool_]] = {}
        self.saved: NDArray[np.float64] = np.zeros(size + 1)
        for read, cost in self._costs.items():
            with_it = self.saved[:-cost] + gains[read]
            takes = np.zeros(size + 1, dtype=bool)
            takes[cost:] = with_it > self.saved[cost:]
            self.saved[cost:] = np.where(takes[cost:], with_it, self.saved[cost:])
            self._takes[read] = takes

    def within(self, share: float) -> dict[LinearInput, int]:
        """Bits of every input, with at most this share of the multiply-adds at 8."""
        # A share that was itself made by a division may be a rounding below what it stands for.
        return self._bits(math.floor(min(share, 1.0) * (len(self.saved) - 1) + 1e-6))

    def saving(self, gain: float) -> dict[LinearInput, int]:
        """The cheapest bits whose gains sum to this; all that gain anything if none do."""
        enough = self.saved >= min(gain, float(self.saved[-1]))
        return self._bits(int(np.argmax(enough)))

    def _bits(self, room: int) -> dict[LinearInput, int]:
        bits = dict.fromkeys(self._macs, 6)
        for read in reversed(self._costs):
            if self._takes[read][room]:
                bits[read] = 8
                room -= self._costs[read]
        return bits


def policy_yaml(bits: Mapping[LinearInput, int], *, comments: Sequence[str]) -> str:
    """A policy file of these bits, 6 or 8, with the comments at its head."""
    layers = len({read.layer for read in bits})
    lines = [*(f"# {line}".rstrip() for line in comments), f"schema: {POLICY_SCHEMA}", "default: 6"]
    rules = []
    for linear in dict.fromkeys(read.linear for read in bits):
        eight = sorted(r.layer for r, b in bits.items() if r.linear == linear and b == 8)
        if eight:
            where = '"*"' if len(eight) == layers else f"[{', '.join(map(str, eight))}]"
            rules.append(f"  - {{layers: {where}, linear: {linear}, act_bits: 8}}")
    return "\n".join([*lines, *(["rules:", *rules] if rules else ["rules: []"])]) + "\n"
