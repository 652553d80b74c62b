"""Plots of sweeps: which are drawn, the height of their bars and what stands above them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.sweep.case_config import Case
from flexq_ft.orchestrate.sweep.metrics import finished_metrics
from flexq_ft.orchestrate.sweep.plots import plot_rows
from flexq_ft.orchestrate.sweep.run import SweepRun

pytest.importorskip("matplotlib")

STEP_MS = {"fp16": 4.0, "w8a8": 2.0, "w6ax": 1.6}


def row(scheme: str, *, perplexity: float | None = None, **config: Any) -> dict[str, Any]:
    case = Case(model="out/m", scheme=scheme, **{"output_tokens": 9, **config})
    step = STEP_MS[scheme]
    samples = {
        "prefill_tok_s": [1.0], "decode_tok_s": [1e3 * case.batch / step], "ttft_ms": [1.0],
        "tpot_ms": [step], "step_ms": [[step] * (case.output_tokens - 1)],
        **{f"latency_{n}_ms": [step * n] for n in case.lengths()},
    }  # fmt: skip
    measured = {
        "batch": case.batch, "weights_bytes": round(1e9 * step), "read_bandwidth_gb_s": 1.0,
        "peak_memory_bytes": round(2e9 * step),
        "lengths": [{"output_tokens": n, "bytes_per_step": 1e6} for n in case.lengths()],
    }  # fmt: skip
    return {
        "config": case.model_dump(mode="json"),
        "metrics": finished_metrics(samples, measured),
        "quality": perplexity and {"ppl": {"perplexity": perplexity}, "agreement": None},
        "error": None,
        "flags": [],
    }


FAILED = {**row("fp16", batch=64), "metrics": None, "error": {"kind": "OutOfMemoryError"}}


class Drawn:
    """The figures that were saved, by file name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from matplotlib.figure import Figure

        self.figures: dict[str, Any] = {}
        save = Figure.savefig

        def savefig(figure: Any, path: Path, **options: Any) -> None:
            save(figure, path, **options)
            self.figures[path.name] = figure

        monkeypatch.setattr(Figure, "savefig", savefig)

    def bars(self, name: str) -> dict[str, list[float]]:
        (panel,) = self.figures[name].axes
        return {bars.get_label(): [bar.get_height() for bar in bars] for bars in panel.containers}

    def texts(self, name: str) -> list[str]:
        return [text.get_text() for text in self.figures[name].axes[0].texts]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return Drawn(monkeypatch)


def test_latency_and_memory_bars(drawn: Drawn, tmp_path: Path) -> None:
    rows = [row(scheme, latency_at=(3,)) for scheme in STEP_MS]
    assert plot_rows([*rows, FAILED], tmp_path) == ["latency.png", "memory.png"]
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    latency = drawn.bars("latency.png")
    assert latency["fp16"] == pytest.approx([0.012, 0.036])
    assert latency["w6ax"] == pytest.approx([0.0048, 0.0144])
    assert drawn.texts("latency.png") == ["2.00x", "2.00x", "2.50x", "2.50x"]
    (legend,) = drawn.figures["latency.png"].legends
    assert [text.get_text() for text in legend.get_texts()] == list(STEP_MS)
    assert drawn.bars("memory.png") == {"fp16": [8.0], "w8a8": [4.0], "w6ax": [3.2]}


def test_tokens_per_second_against_the_batch_and_the_context(drawn: Drawn, tmp_path: Path) -> None:
    rows = [row("fp16", batch=batch) for batch in (4, 1, 2)]
    assert plot_rows(rows, tmp_path) == ["batch.png"]
    (line,) = drawn.figures["batch.png"].axes[0].lines
    assert list(line.get_xdata()) == [1, 2, 4]
    assert list(line.get_ydata()) == [250, 500, 1000]
    rows = [row("fp16", prompt_tokens=tokens) for tokens in (7, 23)]
    assert plot_rows(rows, tmp_path) == ["context.png"]
    (line,) = drawn.figures["context.png"].axes[0].lines
    assert list(line.get_xdata()) == [16, 32]


def test_accuracy_against_size_and_speed(drawn: Drawn, tmp_path: Path) -> None:
    known = {"fp16": 6.0, "w6ax": 6.2, "w8a8": 6.3}
    rows = [row(scheme, perplexity=ppl) for scheme, ppl in known.items()]
    rows += [row("fp16", perplexity=6.0, batch=2)]
    assert plot_rows(rows, tmp_path) == ["memory.png", "batch.png", "accuracy.png"]
    size, rate = drawn.figures["accuracy.png"].axes  # two sequences were timed with one scheme
    front, *points = size.lines
    shown = [(p.get_xdata()[0], p.get_ydata()[0]) for p in points]
    assert shown == [(4.0, 6.0), (1.6, 6.2), (2.0, 6.3)]
    # w8a8 is larger, slower and worse than w6ax, so it is on no front.
    assert [*zip(front.get_xdata(), front.get_ydata(), strict=True)] == [(1.6, 6.2), (4.0, 6.0)]
    front, *points = rate.lines
    assert [p.get_xdata()[0] for p in points] == [250, 625, 500]
    assert [*zip(front.get_xdata(), front.get_ydata(), strict=True)] == [(625, 6.2), (250, 6.0)]
    assert [text.get_text() for text in size.texts] == list(known)  # and so there is no legend
    assert drawn.figures["accuracy.png"].legends == []
    assert size.get_xlabel() == "weights, GB" and rate.get_xlabel() == "decode tok/s"


def test_rows_without_numbers_make_no_plot(tmp_path: Path) -> None:
    assert plot_rows([FAILED], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_plots_without_matplotlib_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="--plots needs matplotlib") as caught:
        SweepRun([Case(model="m")], tmp_path / "out", title="t", plots=True)
    assert caught.value.hint == "pip install 'flexq-ft[plots]'"
