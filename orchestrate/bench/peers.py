"""Kernels of other packages, timed beside ours in the same run: what a peer is, how it is timed.

A peer is a package that a user may have installed. Its module imports that package inside of
functions alone, so that bench gemm runs without any.

    weights   0 1 2 ... c-1 0 1 ...   copies; none is in the cache when its turn comes again
    graph     launch launch ...       10 to 100, about 2 ms, at least one of each copy
    sample    a replay between two events, over its launches
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from flexq_ft.orchestrate.bench.peer_humming import Humming
from flexq_ft.orchestrate.bench.peer_marlin import Marlin
from flexq_ft.orchestrate.bench.samples import percentile

COLD_BYTES = 400 << 20  # of distinct weights between two readings of one, as for ours
MOST_COPIES = 256
FEWEST_LAUNCHES, MOST_LAUNCHES = 10, 100
GRAPH_US = 2000.0
# Rounding to FP16 or to INT8 in groups stays below 0.01; a group left out of K = 28672 makes 0.07.
MOST_ERROR = 0.02


class Graph(Protocol):
    """Launches captured once."""

    def replay(self, times: int = 1) -> float:
        """Microseconds of one launch, the mean of so many replays back to back."""


class Product(Protocol):
    """One implementation of one product, with its weights, inputs and outputs on the GPU."""

    @property
    def config(self) -> str:
        """The kernel that it runs."""

    def error(self) -> float:
        """Of one result, relative to the product with the dequantised weight; may be NaN."""

    def graph(self, launches: int) -> Graph:
        """Launches that take turns among the copies of the weight."""

    def graph_without_quantizer(self, launches: int) -> Graph | None:
        """The same of activations quantised before; None where nothing quantises them."""


class Peer(Protocol):
    """A package and its implementations."""

    @property
    def package(self) -> str:
        """What is imported."""

    @property
    def distribution(self) -> str:
        """What is installed."""

    @property
    def inside(self) -> Mapping[str, str]:
        """By the name of each implementation: what it computes, and what is inside its time."""

    def prepare(self, shapes: Sequence[tuple[int, int]], ms: Sequence[int]) -> None:
        """Compiles ahead what will be measured. Raises nothing: measuring tells the reasons."""

    def build(self, implementation: str, *, m: int, n: int, k: int, copies: int) -> Product:
        """x [m, k] by a weight [n, k] that lies in so many copies."""

    def release(self) -> None:
        """Gives back the memory of products that are gone."""


class WrongResultError(Exception):
    """A kernel computes something else than the product."""


PEERS: dict[str, Peer] = {"humming": Humming(), "marlin": Marlin()}


def find(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of `names` whose package imports, and a line with the reason for each other."""
    found, absent = [], []
    for name in names:
        reason = _why_not(PEERS[name].package)
        if reason is None:
            found.append(name)
        else:
            absent.append(f"{name}: {reason}")
    return found, absent


def _why_not(package: str) -> str | None:
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == package else f"does not import: {error}"
    except Exception as error:  # what a package does when it is imported is its own affair
        return f"does not import: {_first_line(error)}"
    return None


def version(name: str) -> str | None:
    """Of the package that is installed."""
    try:
        return importlib.metadata.version(PEERS[name].distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def legend(implementations: Sequence[str]) -> list[str]:
    """A line for each: what its time is of."""
    inside = {name: text for peer in PEERS.values() for name, text in peer.inside.items()}
    return [f"{name}: its time over ours; {inside[name]}" for name in implementations]


def measure(
    names: Sequence[str], *, m: int, n: int, k: int, replays: int, sustained_s: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Times as of _native.measure_w6ax, and what was refused, with reasons.

    names: packages that import, as find() returns them.
    """
    times, refused = [], []
    for peer in (PEERS[name] for name in names):
        for implementation in peer.inside:
            try:
                times.append(
                    _measure_one(
                        peer, implementation, m, n, k, replays=replays, sustained_s=sustained_s
                    )
                )
            except Exception as error:  # compilers and kernels of others fail in any way
                refused.append(f"{implementation}: {_first_line(error)}")
            peer.release()
    return times, refused


def _measure_one(
    peer: Peer, implementation: str, m: int, n: int, k: int, *, replays: int, sustained_s: float
) -> dict[str, Any]:
    copies = copies_of(n, k)
    product = peer.build(implementation, m=m, n=n, k=k, copies=copies)
    error = product.error()
    if not error <= MOST_ERROR:  # NaN is wrong too
        raise WrongResultError(f"its relative error is {error:.2g}")
    first = product.graph(max(FEWEST_LAUNCHES, copies))
    first.replay()
    launches = launches_of(first.replay(), copies)
    graph = product.graph(launches)
    samples = _samples(graph, replays)
    us = percentile(samples, 0.5)
    sustained = None
    if sustained_s > 0:
        sustained = graph.replay(int(sustained_s * 1e6 / (us * launches)) + 1)
    alone = product.graph_without_quantizer(launches)
    note = ""
    if alone is not None:
        note = f"{percentile(_samples(alone, replays), 0.5):.2f} us without its quantiser"
    return {
        "implementation": implementation,
        "config": product.config,
        "note": note,
        "us": us,
        "p10": percentile(samples, 0.1),
        "p90": percentile(samples, 0.9),
        "full_edges_us": None,
        "sustained_us": sustained,
    }


def copies_of(n: int, k: int) -> int:
    """So many that COLD_BYTES of codes lie between two readings of one."""
    return min(MOST_COPIES, max(2, -(-COLD_BYTES // ((n * k * 6 + 7) // 8))))


def launches_of(us: float, copies: int) -> int:
    """Short launches make longer graphs. At least one of each copy: none is in the cache then."""
    wanted = int(GRAPH_US / us) if us > 0 else MOST_LAUNCHES
    return max(FEWEST_LAUNCHES, min(MOST_LAUNCHES, wanted), copies)


def _samples(graph: Graph, replays: int) -> list[float]:
    graph.replay()  # the first uploads it
    return [graph.replay() for _ in range(replays)]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
