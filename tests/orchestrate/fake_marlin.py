"""Of marlin and torch what their user in orchestrate/bench calls, on arrays of fake_humming.py.

A layer packs codes as they are, beside their scales.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.orchestrate.fake_humming import FakeTensor, World

GROUP = 128


class MarlinWorld(World):
    """With the package of that name. packed: (linear, layer) of each call of pack."""

    def __init__(self) -> None:
        super().__init__()
        self.packed: list[Any] = []

    def modules(self) -> dict[str, ModuleType]:
        torch = super().modules()["torch"]
        rng = np.random.default_rng(2)
        vars(torch).update(
            int32="int32",
            rand=lambda shape, **_: rng.random(shape).view(FakeTensor),
            randint=lambda low, high, shape, **_: rng.integers(low, high, shape).view(FakeTensor),
            zeros=lambda shape, **_: np.zeros(shape).view(FakeTensor),
            nn=SimpleNamespace(Linear=lambda k, n, **_: SimpleNamespace(weight=SimpleNamespace())),
        )
        marlin = ModuleType("marlin")
        vars(marlin).update(Layer=self._marlin_layer, mul=self._mul)
        return {"torch": torch, "marlin": marlin}

    def _marlin_layer(self, k: int, n: int, groupsize: int) -> MarlinLayer:
        if n % 256:
            raise ValueError("`outfeatures` must be divisible by 256.")
        assert groupsize == GROUP
        return MarlinLayer(self)

    def _mul(self, x: Any, codes: Any, y: Any, scales: Any, workspace: Any) -> None:
        n, k = codes.shape
        assert y.shape == (len(x), n) and not workspace.any() and workspace.size >= n // 128 * 16
        if self.capturing is not None:
            self.capturing.append({"codes": codes})
            return
        weight = codes.reshape(n, -1, GROUP) * scales[:, :, None]
        y[...] = x @ weight.reshape(n, k).T


class MarlinLayer:
    def __init__(self, world: MarlinWorld) -> None:
        self.world = world

    def to(self, device: str) -> MarlinLayer:
        assert device == "cuda"
        return self

    def pack(self, linear: Any, scales: FakeTensor) -> None:
        """Codes are the weight over its group's scale, as Marlin finds them."""
        n, groups = scales.shape
        weight = linear.weight.data.reshape(n, groups, GROUP)
        codes = np.clip(np.round(weight / scales[:, :, None]), -8, 7)
        self.B, self.s = codes.reshape(n, -1).view(FakeTensor), scales
        self.world.packed.append((linear, self))
