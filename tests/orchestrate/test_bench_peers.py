"""Kernels of other packages beside ours: how they are timed, and what is said of them."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.orchestrate.bench import gemm, gemm_report, peers
from flexq_ft.orchestrate.cli.main import run_cli
from tests.orchestrate.fake_humming import LAUNCH_MS, World
from tests.orchestrate.fake_marlin import MarlinLayer, MarlinWorld

SHAPE = {"n": 4096, "k": 4096}
OURS_US = 10.0


class FakePeer:
    """Two implementations, of 15 us with a quantiser inside and of 12 us without."""

    package = "flexq_ft_fake_peer"
    distribution = "flexq-ft-fake-peer"
    inside = {"fake-a8": "its quantiser inside", "fake-a16": "nothing else inside"}  # noqa: RUF012

    def __init__(self) -> None:
        self.prepared: list[Any] = []
        self.built: list[tuple[str, int, int, int, int]] = []
        self.graphs: list[int] = []
        self.released = 0
        self.errors: dict[str, float | Exception] = {}

    def prepare(self, shapes: Sequence[tuple[int, int]], ms: Sequence[int]) -> None:
        self.prepared.append((shapes, ms))

    def build(self, implementation: str, *, m: int, n: int, k: int, copies: int) -> Any:
        self.built.append((implementation, m, n, k, copies))
        return FakeProduct(self, implementation)

    def release(self) -> None:
        self.released += 1


class FakeProduct:
    config = "tile=64"

    def __init__(self, peer: FakePeer, implementation: str) -> None:
        self.peer = peer
        self.implementation = implementation

    def error(self) -> float:
        error = self.peer.errors.get(self.implementation, 0.001)
        if isinstance(error, Exception):
            raise error
        return error

    def graph(self, launches: int) -> FakeGraph:
        self.peer.graphs.append(launches)
        return FakeGraph(15.0 if self.implementation == "fake-a8" else 12.0)

    def graph_without_quantizer(self, launches: int) -> FakeGraph | None:
        return FakeGraph(11.0) if self.implementation == "fake-a8" else None


class FakeGraph:
    """Every other replay takes a microsecond longer; many back to back take 3 us more."""

    def __init__(self, us: float) -> None:
        self.us = us
        self.replays = 0

    def replay(self, times: int = 1) -> float:
        self.replays += 1
        return self.us + 3 if times > 1 else self.us + self.replays % 2


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> FakePeer:
    """An installed peer of that name, among those that are known."""
    fake = FakePeer()
    monkeypatch.setitem(sys.modules, fake.package, ModuleType(fake.package))
    monkeypatch.setitem(peers.PEERS, "fake", fake)
    return fake


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which ours take 10 us."""

    def measure(**wanted: Any) -> dict[str, Any]:
        time = {"us": OURS_US, "p10": 9.9, "p90": 10.1, "full_edges_us": 11.0, "sustained_us": None}
        times = [{"implementation": "stream", "config": "tiles=4", "note": "", **time}]
        sizes = {name: wanted[name] for name in ("m", "n", "k", "act_bits")}
        return {**sizes, "times": times, "refused": ["btc: not here"], "heuristics": 0}

    monkeypatch.setattr(_native, "measure_w6ax", measure)
    monkeypatch.setattr(_native, "measure_read_bandwidth", lambda **_: 3.05e12)
    monkeypatch.setattr(_native, "gpus", lambda: [{"name": "Test GPU"}])


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Humming and torch by their names."""
    world = World()
    for name, module in world.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return world


def time_all(names: Sequence[str] = ("fake",), **wanted: Any) -> Any:
    return peers.measure(names, **{"m": 1, **SHAPE, "replays": 4, "sustained_s": 0.0, **wanted})


def test_times_have_the_form_of_ours(peer: FakePeer):
    times, refused = time_all()
    assert refused == []
    assert times[0] == {
        "implementation": "fake-a8",
        "config": "tile=64",
        "note": "11.50 us without its quantiser",
        "us": 15.5,
        "p10": 15.0,
        "p90": 16.0,
        "full_edges_us": None,
        "sustained_us": None,
    }
    assert (times[1]["implementation"], times[1]["note"]) == ("fake-a16", "")
    assert peer.built[0] == ("fake-a8", 1, 4096, 4096, 34)
    assert peer.released == 2


def test_sustained_times_are_taken_where_they_are_asked_for(peer: FakePeer):
    times, _ = time_all(sustained_s=0.5)
    assert [time["sustained_us"] for time in times] == [18.0, 15.0]


@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (28672, 8192), (64, 128), (1, 1)])
def test_copies_of_a_weight_are_too_many_for_the_cache(n: int, k: int):
    copies = peers.copies_of(n, k)
    assert 2 <= copies <= peers.MOST_COPIES
    assert copies * n * k * 6 / 8 >= peers.COLD_BYTES or copies == peers.MOST_COPIES


@pytest.mark.parametrize(
    ("us", "copies", "launches"),
    [(5.0, 34, 100), (50.0, 3, 40), (900.0, 3, 10), (900.0, 34, 34), (0.0, 2, 100)],
)
def test_a_graph_is_two_milliseconds_and_reads_every_copy(us: float, copies: int, launches: int):
    assert peers.launches_of(us, copies) == launches


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_wrong_results_are_refused_and_not_timed(peer: FakePeer, error: float):
    peer.errors["fake-a8"] = error
    times, refused = time_all()
    assert [time["implementation"] for time in times] == ["fake-a16"]
    assert refused == [f"fake-a8: WrongResultError: its relative error is {error:.2g}"]


def test_a_failure_refuses_one_implementation_with_the_reason(peer: FakePeer):
    peer.errors["fake-a8"] = RuntimeError("no kernel image\n  at line 3")
    times, refused = time_all()
    assert [time["implementation"] for time in times] == ["fake-a16"]
    assert refused == ["fake-a8: RuntimeError: no kernel image"]
    assert peer.released == 2


def test_packages_that_do_not_import_are_told_from_those_that_are_absent(
    peer: FakePeer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    assert peers.find(["fake"]) == (["fake"], [])
    monkeypatch.delitem(sys.modules, peer.package)
    assert peers.find(["fake"]) == ([], ["fake: not installed"])
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / f"{peer.package}.py"
    package.write_text("import flexq_ft_absent_compiler\n", encoding="utf-8")
    reason = peers.find(["fake"])[1][0]
    assert reason == "fake: does not import: No module named 'flexq_ft_absent_compiler'"
    package.write_text("raise OSError('libcuda.so.1: not found')\n", encoding="utf-8")
    assert peers.find(["fake"])[1] == ["fake: does not import: OSError: libcuda.so.1: not found"]
    assert peers.version("fake") is None


def test_the_fastest_peer_is_over_the_best_of_ours(peer: FakePeer):
    times, _ = time_all()
    ours = {**times[0], "implementation": "stream", "us": OURS_US}
    row = gemm.derived(gemm.Shape(4096, 4096), 1, [ours, *times], 3.05e12)
    assert (row["best"], row["peer"]) == ("stream", "fake-a16")
    assert row["over_peer"] == pytest.approx(1.25)
    assert row["over_peers"] == pytest.approx({"fake-a8": 1.55, "fake-a16": 1.25})
    alone = gemm.derived(gemm.Shape(4096, 4096), 1, times, 3.05e12)
    assert (alone["best"], alone["peer"], alone["over_peer"]) == (None, "fake-a16", None)


@pytest.mark.usefixtures("machine")
def test_a_run_against_a_peer_shows_it_everywhere(
    peer: FakePeer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    saved = {suffix: tmp_path / f"out{suffix}" for suffix in (".md", ".csv", ".json")}
    command = ["bench", "gemm", "--shapes", "4096x4096,4096x4096:a8", "--m", "1,8"]
    command += ["--against", "fake,fake", "--against", "fake"]
    assert run_cli([*command, *(f"--save={path}" for path in saved.values())]) == 0
    assert peer.prepared == [([(4096, 4096)], [1, 8])]
    assert len(peer.built) == 8
    ratios = "1.250 x the fastest peer (worst 1.250), 1.550 x fake-a8 (worst 1.550), 1.250 x fake"
    inside = "fake-a8: its time over ours; its quantiser inside"
    out = capsys.readouterr().out
    report = saved[".md"].read_text(encoding="utf-8")
    for text in (out, report):
        assert ratios in " ".join(text.split())
        assert inside in " ".join(text.split())
    assert "| peer | fake-a8 | fake-a16 |" in report
    assert "| 1.25 | 1.55 | 1.25 |" in report
    assert "| 4096x4096 | 8 | fake-a8 | tile=64 | 15.50 | 15.00-16.00 | 11.50 us without" in report
    lines = list(csv.DictReader(io.StringIO(saved[".csv"].read_text(encoding="utf-8"))))
    assert [line["implementation"] for line in lines[:3]] == ["stream", "fake-a8", "fake-a16"]
    rows = json.loads(saved[".json"].read_text(encoding="utf-8"))["results"]["products"]
    assert (rows[0]["peer"], rows[0]["refused"]) == ("fake-a16", ["btc: not here"])


@pytest.mark.usefixtures("machine")
def test_a_chart_has_bars_of_the_peers(peer: FakePeer, tmp_path: Path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "chart.png"
    command = ["bench", "gemm", "--shapes", "64x128", "--m", "1", "--against", "fake"]
    assert run_cli([*command, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("machine")
def test_a_peer_that_is_not_installed_is_a_line_and_no_error(
    peer: FakePeer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
):
    monkeypatch.delitem(sys.modules, peer.package)
    path = tmp_path / "out.md"
    command = ["bench", "gemm", "--shapes", "64x128", "--m", "1", "--against", "fake"]
    assert run_cli([*command, "--save", str(path)]) == 0
    assert "not measured: fake: not installed" in capsys.readouterr().err
    report = path.read_text(encoding="utf-8")
    assert "- fake: not installed" in report and "| peer |" not in report
    assert not peer.built and not peer.prepared


def test_a_peer_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]):
    assert run_cli(["bench", "gemm", "--against", "humming,magic"]) == 2
    assert "--against has 'magic'; known are humming, marlin" in capsys.readouterr().err


def test_humming_takes_turns_among_layers_and_names_the_kernel_of_the_tokens(world: World):
    times, refused = time_all(["humming"], m=16, n=64, k=128)
    assert refused == []
    assert [time["implementation"] for time in times] == ["humming-w6a8", "humming-w6a16"]
    for time in times:
        assert time["us"] == pytest.approx(LAUNCH_MS * 1000)
        assert time["config"] == "wgmma block=64x128x64 stages=4"
    assert times[0]["note"] == "50.00 us without its quantiser" and times[1]["note"] == ""
    copies = peers.copies_of(64, 128)
    assert len(world.layers) == 2 * copies
    assert world.layers[0].wanted["weight_config"] == {"dtype": "int6", "group_size": 128}
    assert world.layers[0].wanted["input_config"] == {"dtype": "int8", "group_size": 128}
    assert world.layers[-1].wanted["input_config"] == {"dtype": "float16"}
    assert world.released == 2
    # The result that is checked, then each layer once, so that no kernel is loaded in a capture.
    assert [launch["layer"] for launch in world.launches[: copies + 1]] == [0, *range(copies)]
    first, timed, without = world.graphs[:3]
    for graph in (first, timed, without):
        assert [launch["layer"] for launch in graph.launches] == list(range(copies))
    assert not any(launch["quantized"] for launch in timed.launches)
    assert all(launch["quantized"] for launch in without.launches)


def test_humming_says_what_it_does_not_take(world: World):
    times, refused = time_all(["humming"], n=100, k=128)
    assert times == []
    assert refused[0] == "humming-w6a8: AssertionError: n is no multiple of 64"


def test_humming_is_compared_with_its_own_dequantised_weight(world: World):
    refused = time_all(["humming"], n=777, k=128)[1]
    assert [line.split(": its")[0] for line in refused] == [
        "humming-w6a8: WrongResultError",
        "humming-w6a16: WrongResultError",
    ]


def test_humming_compiles_each_kernel_once(world: World):
    peers.PEERS["humming"].prepare([(100, 128), (64, 128)], [1, 2, 16])
    compiled = [(json.loads(layer), kernel["block_shape"][0]) for layer, kernel in world.compiled]
    assert {layer["n"] for layer, _ in compiled} == {64}
    assert sorted((layer["dtype"], block) for layer, block in compiled) == [
        ("float16", 8), ("float16", 64), ("int8", 8), ("int8", 64),
    ]  # fmt: skip


@pytest.fixture
def marlin_world(monkeypatch: pytest.MonkeyPatch) -> MarlinWorld:
    """Marlin and torch by their names."""
    world = MarlinWorld()
    for name, module in world.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return world


def test_marlin_takes_turns_among_copies_of_a_packed_weight(marlin_world: MarlinWorld):
    times, refused = time_all(["marlin"], m=16, n=256, k=384)
    assert refused == []
    assert [time["implementation"] for time in times] == ["marlin-w4a16"]
    assert times[0]["us"] == pytest.approx(LAUNCH_MS * 1000) and times[0]["note"] == ""
    copies = peers.copies_of(256, 384)
    (linear, layer), *others = marlin_world.packed
    assert not others
    steps = (linear.weight.data / np.repeat(layer.s, 128, axis=1)).round(6)
    assert {*np.unique(steps)} == {float(code) for code in range(-8, 8)}
    launches = [launch["codes"] for launch in marlin_world.graphs[1].launches]
    assert len({id(codes) for codes in launches}) == copies == len(launches)
    assert marlin_world.released == 1


def test_marlin_says_what_it_does_not_take(marlin_world: MarlinWorld):
    times, refused = time_all(["marlin"], n=100, k=128)
    assert times == []
    assert refused == ["marlin-w4a16: ValueError: `outfeatures` must be divisible by 256."]


def test_a_marlin_that_rounds_otherwise_is_refused(marlin_world: MarlinWorld, monkeypatch: Any):
    pack = MarlinLayer.pack

    def shifted(self: MarlinLayer, linear: Any, scales: Any) -> None:
        pack(self, linear, scales)
        self.B += 1

    monkeypatch.setattr(MarlinLayer, "pack", shifted)
    assert "WrongResultError" in time_all(["marlin"], n=256, k=128)[1][0]


def test_every_implementation_says_what_is_inside_its_time():
    names = [name for peer in peers.PEERS.values() for name in peer.inside]
    assert names == ["humming-w6a8", "humming-w6a16", "marlin-w4a16"]
    lines = peers.legend(names)
    assert "INT8 activations in groups of 128, quantising these" in lines[0]
    assert "INT4 weights" in lines[2]
    assert gemm_report.legend_of_peers([{"times": []}]) == []
