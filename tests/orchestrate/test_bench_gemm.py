"""What `flexq-ft bench gemm` measures, and what it says of it."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from flexq_ft import _native
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.bench import gemm
from flexq_ft.orchestrate.cli.main import run_cli

CEILING = 3.05e12


def timed(implementation: str, us: float, **more: Any) -> dict[str, Any]:
    return {
        "implementation": implementation,
        "config": "tiles=4",
        "note": "",
        "us": us,
        "p10": us - 0.1,
        "p90": us + 0.1,
        "full_edges_us": us + 1,
        "sustained_us": None,
        **more,
    }


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A GPU that answers at once; what it was asked."""
    asked: list[dict[str, Any]] = []

    def measure(**wanted: Any) -> dict[str, Any]:
        asked.append(wanted)
        us = {"stream": 6.0, "btc": 9.0, "weight-only": 7.5}
        us |= {"cublaslt-int8": 12.0, "cublaslt-fp16": 18.0}
        times = [timed(n, us[n]) for n in wanted["implementations"] if n in us]
        refused = [f"{n}: not here" for n in wanted["implementations"] if n not in us]
        sizes = {name: wanted[name] for name in ("m", "n", "k", "act_bits")}
        return {**sizes, "times": times, "refused": refused, "heuristics": 12}

    monkeypatch.setattr(_native, "measure_w6ax", measure)
    quantizers = ("alone", "norm", "norm_and_codes", "activation", "activation_and_codes")
    monkeypatch.setattr(_native, "measure_quantizers", lambda **_: dict.fromkeys(quantizers, 2.25))
    monkeypatch.setattr(_native, "measure_read_bandwidth", lambda **_: CEILING)
    monkeypatch.setattr(_native, "gpus", lambda: [{"name": "Test GPU"}])
    return asked


def test_the_shapes_of_the_paper_have_the_floors_of_their_bytes():
    shapes = gemm.SHAPES["paper"]
    assert len(shapes) == 20
    assert [str(s) for s in shapes[:4]] == ["12288x4096", "4096x4096", "11008x4096", "4096x11008*"]
    row = gemm.derived(shapes[0], 1, [timed("stream", 14.0)], CEILING)
    assert row["floor_us"] == pytest.approx(12.63, abs=0.01)
    assert row["target_us"] == pytest.approx(13.93, abs=0.01)
    assert row["over_target"] == pytest.approx(14.0 / 13.93, abs=1e-3)
    assert row["over_int8"] is None


def test_shapes_are_names_sizes_and_files(tmp_path: Path):
    path = tmp_path / "shapes.txt"
    path.write_text("64x128 a8  # down\n\n32x256\n", encoding="utf-8")
    got = gemm.parse_shapes(f"96x128:a8,{path},llama3")
    assert [str(s) for s in got[:3]] == ["96x128*", "64x128*", "32x256"]
    assert str(got[3]) == "6144x4096"
    path.write_text("64 by 128\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 1: '64 by 128'"):
        gemm.parse_shapes(str(path))
    with pytest.raises(ConfigError, match="neither a list of shapes nor a file"):
        gemm.parse_shapes("gibberish")


def test_sustained_times_are_what_counts_where_they_were_taken():
    times = [timed("wgmma", 100.0, sustained_us=120.0), timed("cublaslt-fp16", 150.0)]
    row = gemm.derived(gemm.Shape(4096, 4096), 512, times, CEILING)
    assert (row["best"], row["us"]) == ("wgmma", 120.0)
    assert row["over_fp16"] == pytest.approx(1.25)
    assert row["tops"] == pytest.approx(2 * 512 * 4096 * 4096 / 120e-6 / 1e12)


def test_the_bit_serial_kernel_is_shown_and_never_called_the_best():
    row = gemm.derived(gemm.Shape(4096, 4096), 1, [timed("btc", 5.0), timed("mma", 8.0)], CEILING)
    assert row["best"] == "mma"
    assert row["over_btc"] == pytest.approx(0.625)


def test_weight_only_is_asked_for_and_is_the_best_only_where_it_is_alone(
    machine: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    times = [timed("stream", 6.0), timed("weight-only", 5.0)]
    row = gemm.derived(gemm.Shape(4096, 4096), 8, times, CEILING)
    assert row["best"] == "stream"
    assert row["over_weight_only"] == pytest.approx(5 / 6)
    table = tmp_path / "out.tsv"
    command = ["bench", "gemm", "--shapes", "4096x4096", "--m", "8,65", "--impl", "weight-only"]
    assert run_cli([*command, "--table", str(table)]) == 0
    assert [a["implementations"] for a in machine] == [["weight-only"], []]
    assert "weight-only tiles=4" in capsys.readouterr().out
    assert len(table.read_text(encoding="utf-8").splitlines()) == 3  # no row: no W6Ax kernel
    assert run_cli(["bench", "gemm", "--shapes", "4096x4096", "--m", "8"]) == 0
    assert "weight-only" not in machine[-1]["implementations"]


def test_a_run_shows_every_shape_and_saves_what_was_asked_for(
    machine: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    saved = {suffix: tmp_path / f"out{suffix}" for suffix in (".md", ".csv", ".json", ".tsv")}
    command = ["bench", "gemm", "--shapes", "4096x4096,4096x11008:a8", "--m", "1,64"]
    saves = [f"--save={saved[suffix]}" for suffix in (".md", ".csv", ".json")]
    assert run_cli([*command, *saves, "--table", str(saved[".tsv"])]) == 0
    out = capsys.readouterr().out
    assert "M = 1, 2 shapes, geometric mean" in out and "M = 64, 2 shapes" in out
    assert [(a["m"], a["act_bits"]) for a in machine] == [(1, 6), (1, 8), (64, 6), (64, 8)]
    assert "wgmma" not in machine[0]["implementations"]
    assert "wgmma" in machine[2]["implementations"]
    report = saved[".md"].read_text(encoding="utf-8")
    assert "| 4096x11008* |" in report and "- cublas-nn: not here" in report
    lines = list(csv.DictReader(io.StringIO(saved[".csv"].read_text(encoding="utf-8"))))
    assert {line["implementation"] for line in lines} == {
        "stream", "btc", "cublaslt-int8", "cublaslt-fp16",
    }  # fmt: skip
    table = saved[".tsv"].read_text(encoding="utf-8").splitlines()
    assert table[1] == "# gpu Test GPU"
    assert table[3] == "4096\t4096\t1\tstream\ttiles=4\t6.00"


def test_explain_lists_candidates_and_times_nothing(
    machine: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def explain(*, m: int, n: int, k: int, act_bits: int) -> str:
        return f"a table\n{n}x{k} M={m} a{act_bits}: stream (table)\n  not wgmma: too few\n"

    monkeypatch.setattr(_native, "explain_w6ax", explain)
    command = ["bench", "gemm", "--explain", "--shapes", "64x128:a8", "--m", "1,8"]
    assert run_cli(command) == 0
    assert not machine
    assert capsys.readouterr().out.splitlines() == [
        "a table",
        "64x128 M=1 a8: stream (table)",
        "  not wgmma: too few",
        "64x128 M=8 a8: stream (table)",
        "  not wgmma: too few",
    ]
    assert run_cli([*command, "--impl", "weight-only"]) == 0
    assert "64x128 M=8 a16: stream (table)" in capsys.readouterr().out


def test_quantisers_are_measured_at_each_depth_once(
    machine: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
):
    flags = ["--shapes", "64x128,96x128,64x256:a8", "--m", "4", "--quantizers"]
    assert run_cli(["bench", "gemm", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith("| 2.25 |")] == [
        "| 128 | 6 | 4 | 2.25 | 2.25 | 2.25 | 2.25 | 2.25 |",
        "| 256 | 8 | 4 | 2.25 | 2.25 | 2.25 | 2.25 | 2.25 |",
    ]


def test_a_chart_has_a_panel_for_every_m(machine: list[dict[str, Any]], tmp_path: Path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "chart.png"
    assert run_cli(["bench", "gemm", "--shapes", "64x128", "--m", "1,8", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--impl", "stream,magic"], "--impl has 'magic'"),
        (["--m", "0"], "tokens are at least 1"),
    ],
)
def test_what_is_not_known_is_refused(flags: list[str], message: str, capsys):
    assert run_cli(["bench", "gemm", *flags]) == 2
    assert message in capsys.readouterr().err


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(_native, "gpus", list)
    assert run_cli(["bench", "gemm", "--m", "1"]) == 4
    assert "no GPU to measure on" in capsys.readouterr().err
