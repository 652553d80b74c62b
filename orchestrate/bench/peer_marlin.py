"""Marlin as a peer: a kernel for INT4 weights and FP16 activations, as its authors publish it.

Its layers have a multiple of 256 outputs and of 128 inputs; others are refused by the package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module

from flexq_ft.orchestrate.bench.torch_graph import TorchGraph

_GROUP = 128
_INSIDE = {
    "marlin-w4a16": "INT4 weights in groups of 128, two thirds of our bytes, FP16 activations",
}
_LOCKS = 16  # of the workspace, for each 128 outputs; some versions take half as many


class Marlin:
    """The package marlin of github.com/IST-DASLab/marlin."""

    package = "marlin"
    distribution = "marlin"

    @property
    def inside(self) -> Mapping[str, str]:
        return _INSIDE

    def prepare(self, shapes: Sequence[tuple[int, int]], ms: Sequence[int]) -> None:
        """It was compiled when it was installed."""

    def build(self, implementation: str, *, m: int, n: int, k: int, copies: int) -> MarlinProduct:
        return MarlinProduct(m=m, n=n, k=k, copies=copies)

    def release(self) -> None:
        import_module("torch").cuda.empty_cache()


class MarlinProduct:
    """Copies of one weight that take turns."""

    config = "tiles as it chooses"

    def __init__(self, *, m: int, n: int, k: int, copies: int) -> None:
        torch, self._marlin = import_module("torch"), import_module("marlin")
        half = {"dtype": torch.float16, "device": "cuda"}
        self._x = torch.randn((m, k), **half)
        self._y = torch.empty((m, n), **half)
        self._workspace = torch.zeros((n // 128 * _LOCKS,), dtype=torch.int32, device="cuda")
        scales = 0.01 * torch.rand((n, k // _GROUP), **half) + 0.01
        codes = torch.randint(-8, 8, (n, k // _GROUP, _GROUP), device="cuda")
        linear = torch.nn.Linear(k, n, bias=False, **half)
        linear.weight.data = (codes * scales[:, :, None]).reshape((n, k))
        self._expected = self._x.float() @ linear.weight.data.float().T
        layer = self._marlin.Layer(k, n, groupsize=_GROUP).to("cuda")
        layer.pack(linear, scales)
        self._weights = [(layer.B.clone(), layer.s.clone()) for _ in range(copies)]

    def error(self) -> float:
        self._y.fill_(float("nan"))
        self._launch(0)
        return float((self._y.float() - self._expected).norm() / self._expected.norm())

    def graph(self, launches: int) -> TorchGraph:
        self._launch(0)  # a kernel cannot be loaded while a graph is captured
        return TorchGraph(launches, self._launch)

    def graph_without_quantizer(self, launches: int) -> None:
        """Nothing is quantised."""

    def _launch(self, i: int) -> None:
        codes, scales = self._weights[i % len(self._weights)]
        self._marlin.mul(self._x, codes, self._y, scales, self._workspace)
