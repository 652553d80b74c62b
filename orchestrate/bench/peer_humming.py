"""Humming as a peer: kernels for torch that are compiled when they are first used.

Its layers are used as a model uses them: quantise, transform, call. For each layer it keeps a
table of kernels by the number of tokens, about a hundred, and compiles all of them at the first
call. Here the entry of the tokens at hand is named instead: the same kernel, compiled alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import Any

from flexq_ft.orchestrate.bench.torch_graph import TorchGraph

_WEIGHTS = {"dtype": "int6", "group_size": 128}
_INPUTS: dict[str, dict[str, Any]] = {
    "humming-w6a8": {"dtype": "int8", "group_size": 128},
    "humming-w6a16": {"dtype": "float16"},
}
_INSIDE = {
    "humming-w6a8": "INT6 weights and INT8 activations in groups of 128, quantising these from "
    "FP16 inside its time",
    "humming-w6a16": "INT6 weights in groups of 128, FP16 activations",
}


class Humming:
    """The package humming, of the distribution humming-kernels."""

    package = "humming"
    distribution = "humming-kernels"

    @property
    def inside(self) -> Mapping[str, str]:
        return _INSIDE

    def prepare(self, shapes: Sequence[tuple[int, int]], ms: Sequence[int]) -> None:
        """Compiles side by side: a kernel takes seconds, and there are some for each shape.

        What fails here fails again where it is measured, and is told there.
        """
        kernels = set()
        for implementation in _INPUTS:
            for n, k in shapes:
                with suppress(Exception):
                    layer = _layer(implementation, n, k)
                    layer.transform()
                    config = layer.humming_config.to_str()
                    kernels |= {(config, json.dumps(_kernel(layer, m))) for m in ms}

        def compile_one(kernel: tuple[str, str]) -> None:
            with suppress(Exception):
                cache = import_module("humming.kernel.humming").HummingKernel
                cache.prepare_kernels(kernel[0], None, kernel[1])

        with ThreadPoolExecutor() as pool:
            list(pool.map(compile_one, kernels))
        self.release()

    def build(self, implementation: str, *, m: int, n: int, k: int, copies: int) -> HummingProduct:
        return HummingProduct(implementation, m=m, n=n, k=k, copies=copies)

    def release(self) -> None:
        import_module("torch").cuda.empty_cache()


class HummingProduct:
    """Layers of one shape that take turns."""

    def __init__(self, implementation: str, *, m: int, n: int, k: int, copies: int) -> None:
        torch = import_module("torch")
        self._x = torch.randn((m, k), dtype=torch.float16, device="cuda")
        self._y = torch.empty((m, n), dtype=torch.float16, device="cuda")
        self._layers = [_layer(implementation, n, k) for _ in range(copies)]
        first = self._layers[0]
        weight = first.weight_schema.dequant_tensors(first.state_dict())
        self._expected = self._x.float() @ weight.float().T
        for layer in self._layers:
            layer.transform()
        self._kernel = _kernel(first, m)
        self._quantizes = _INPUTS[implementation]["dtype"] != "float16"

    @property
    def config(self) -> str:
        block = "x".join(map(str, self._kernel["block_shape"]))
        return f"{self._kernel['mma_type']} block={block} stages={self._kernel['num_stages']}"

    def error(self) -> float:
        self._y.fill_(float("nan"))
        self._launch(0)
        return float((self._y.float() - self._expected).norm() / self._expected.norm())

    def graph(self, launches: int) -> TorchGraph:
        for i in range(len(self._layers)):  # a kernel cannot be loaded while a graph is captured
            self._launch(i)
        return TorchGraph(launches, self._launch)

    def graph_without_quantizer(self, launches: int) -> TorchGraph | None:
        if not self._quantizes:
            return None
        quantize = import_module("humming.forward").may_quant_input
        codes, scales = quantize(self._layers[0].humming_config, self._x)

        def launch(i: int) -> None:
            self._call(i, codes, input_scale=scales)

        return TorchGraph(launches, launch)

    def _launch(self, i: int) -> None:
        self._call(i, self._x)

    def _call(self, i: int, x: Any, **scales: Any) -> None:
        layer = self._layers[i % len(self._layers)]
        layer(x, outputs=self._y, tuning_config=self._kernel, **scales)


def _layer(implementation: str, n: int, k: int) -> Any:
    """With a random weight of its own, quantised, not yet in the kernels' layout."""
    torch = import_module("torch")
    with torch.device("cuda"):
        layer = import_module("humming.layer").HummingLayer(
            shape_n=n,
            shape_k=k,
            weight_config=dict(_WEIGHTS),
            input_config=dict(_INPUTS[implementation]),
            torch_dtype=torch.float16,
        )
    layer.load_from_unquantized(torch.randn((n, k), dtype=torch.float16, device="cuda"))
    return layer


def _kernel(layer: Any, m: int) -> dict[str, Any]:
    """The entry of its table for m tokens."""
    table = import_module("humming.tune").get_heuristics_config(layer.humming_config)
    config: dict[str, Any] = next(c for begin, end, c in table if begin < m <= end)
    return config
