"""Of torch and humming what their user in orchestrate/bench calls, on NumPy arrays.

A launch is computed and noted in World.launches, or, while a graph is captured, noted there alone.
Time passes in replays only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

LAUNCH_MS = 0.05
WRONG_ROW = 7  # of a weight with n = 777


class FakeTensor(np.ndarray[Any, Any]):
    """Of NumPy, with the methods of torch."""

    def float(self) -> FakeTensor:
        return self.astype(np.float32)

    def fill_(self, value: float) -> None:
        self[...] = value

    def clone(self) -> FakeTensor:
        return self.copy()

    def norm(self) -> Any:
        return np.linalg.norm(np.asarray(self))


class World:
    """What happened."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.capturing: list[dict[str, Any]] | None = None
        self.launches: list[dict[str, Any]] = []
        self.graphs: list[FakeGraph] = []
        self.layers: list[Any] = []
        self.compiled: list[tuple[str, dict[str, Any]]] = []
        self.released = 0

    def modules(self) -> dict[str, ModuleType]:
        """By the names that they are imported by."""
        return {
            "torch": _module("torch", **self._torch()),
            "humming": _module("humming"),
            "humming.layer": _module("humming.layer", HummingLayer=self._layer),
            "humming.tune": _module("humming.tune", get_heuristics_config=_table),
            "humming.forward": _module("humming.forward", may_quant_input=_quantize),
            "humming.kernel": _module("humming.kernel"),
            "humming.kernel.humming": _module(
                "humming.kernel.humming",
                HummingKernel=SimpleNamespace(prepare_kernels=self._compile),
            ),
        }

    def _torch(self) -> dict[str, Any]:
        rng = np.random.default_rng(1)

        @contextmanager
        def device(name: str) -> Iterator[None]:
            assert name == "cuda"
            yield

        @contextmanager
        def capture(graph: FakeGraph) -> Iterator[None]:
            assert self.capturing is None
            self.capturing = graph.launches
            yield
            self.capturing = None

        def release() -> None:
            self.released += 1

        return {
            "float16": "float16",
            "device": device,
            "randn": lambda shape, **_: rng.standard_normal(shape).view(FakeTensor),
            "empty": lambda shape, **_: np.empty(shape).view(FakeTensor),
            "cuda": SimpleNamespace(
                CUDAGraph=lambda: FakeGraph(self),
                graph=capture,
                Event=lambda enable_timing: FakeEvent(self),
                empty_cache=release,
            ),
        }

    def _layer(self, **wanted: Any) -> FakeLayer:
        self.layers.append(FakeLayer(self, **wanted))
        return self.layers[-1]

    def _compile(self, layer: str, compute: None, kernel: str) -> None:
        self.compiled.append((layer, json.loads(kernel)))


class FakeGraph:
    """Launches, each of which takes LAUNCH_MS."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.launches: list[dict[str, Any]] = []
        world.graphs.append(self)

    def replay(self) -> None:
        self.world.now_ms += LAUNCH_MS * len(self.launches)


class FakeEvent:
    """A point of the world's time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.at_ms = 0.0

    def record(self) -> None:
        self.at_ms = self.world.now_ms

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at_ms - self.at_ms


class FakeLayer:
    """A layer of n = 100 does not exist, one of n = 777 computes a wrong row."""

    def __init__(self, world: World, **wanted: Any) -> None:
        if wanted["shape_n"] == 100:
            raise AssertionError("n is no multiple of 64\nand so on")
        self.world = world
        self.wanted = wanted
        self.index = len(world.layers)
        self.weight_schema = SimpleNamespace(dequant_tensors=lambda tensors: tensors["weight"])
        self.transformed = False

    @property
    def humming_config(self) -> Any:
        assert self.transformed
        text = json.dumps({"n": self.wanted["shape_n"], **self.wanted["input_config"]})
        return SimpleNamespace(to_str=lambda: text)

    def load_from_unquantized(self, weight: FakeTensor) -> None:
        self.weight = weight

    def state_dict(self) -> dict[str, Any]:
        assert not self.transformed, "the weight is in the kernels' layout"
        return {"weight": self.weight}

    def transform(self) -> None:
        self.transformed = True

    def __call__(
        self, x: Any, *, outputs: Any, tuning_config: Any, input_scale: Any = None
    ) -> None:
        launch = {
            "layer": self.index,
            "kernel": tuning_config,
            "quantized": input_scale is not None,
        }
        if self.world.capturing is not None:
            self.world.capturing.append(launch)
            return
        self.world.launches.append(launch)
        outputs[...] = x @ self.weight.T
        if self.wanted["shape_n"] == 777:
            outputs[:, WRONG_ROW] += 1000


def _table(config: Any) -> list[Any]:
    def entry(begin: int, end: int, block: int) -> list[Any]:
        return [begin, end, {"mma_type": "wgmma", "block_shape": (block, 128, 64), "num_stages": 4}]

    return [entry(0, 8, 8), entry(8, 64, 64), entry(64, 1 << 30, 128)]


def _quantize(config: Any, x: Any) -> tuple[Any, Any]:
    return x, 1.0


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module
