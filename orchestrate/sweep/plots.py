"""Plots of a sweep's rows: latency and memory bars, tokens per second, accuracy against both.

Only those are drawn for which the rows have something to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.sweep.points import Point, model_name, points_of, precision_name
from flexq_ft.orchestrate.sweep.store import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_T = TypeVar("_T")
_Draw = Callable[["Axes"], None]

_BASELINE = "fp16"
_COLUMNS = 4  # panels in a row


def require_matplotlib() -> None:
    """Raises ConfigError where it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--plots needs matplotlib.", hint="pip install 'flexq-ft[plots]'"
        ) from error


def plot_rows(rows: Sequence[Row], folder: Path) -> list[str]:
    """The names of the PNG files that were drawn into the folder."""
    points = points_of(rows)
    colors = {name: f"C{i}" for i, name in enumerate(_unique(p.precision for p in points))}
    panels = {
        "latency.png": _latency(points, colors),
        "memory.png": _memory(points, colors),
        "batch.png": _lines(points, colors, by="batch"),
        "context.png": _lines(points, colors, by="context"),
        "accuracy.png": _accuracy(rows, colors),
    }
    drawn = {name: draws for name, draws in panels.items() if draws}
    for name, draws in drawn.items():
        _save(draws, folder / name, wide=name == "memory.png")
    return list(drawn)


def _save(draws: Sequence[_Draw], path: Path, *, wide: bool) -> None:
    from matplotlib.figure import Figure

    columns = min(len(draws), _COLUMNS)
    height = -(-len(draws) // columns)
    size = (12.0 if wide else max(6.0, 4.2 * columns), 3.6 * height)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(height, columns, squeeze=False).flat)
    for panel, draw in zip(panels, draws, strict=False):
        draw(panel)
    for panel in panels[len(draws) :]:
        panel.set_axis_off()
    named = [panel.get_legend_handles_labels() for panel in panels]
    legend = {name: handle for each in named for handle, name in zip(*each, strict=True)}
    if legend:  # outside: inside it hides what it names
        columns = min(len(legend), 2 * columns)
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=columns,
                      fontsize=7)  # fmt: skip
    figure.savefig(path, dpi=150)


def _latency(points: Sequence[Point], colors: dict[str, str]) -> list[_Draw]:
    """A panel for each model and batch, a group for each output length, a bar for each scheme: as
    the end-to-end figure of FlexQ's paper."""
    groups = _grouped(points, lambda p: (p.model, p.tp, p.batch, p.prompt_tokens))
    return [
        _bars(
            group,
            colors,
            title=f"{_setting(group[0])}, {group[0].prompt_tokens} tokens in",
            ylabel="latency, s",
            xlabel="output tokens",
            label=lambda p: str(p.output_tokens),
            height=lambda p: 1e-3 * p.latency_ms,
        )
        for group in groups
        if len(_unique(p.output_tokens for p in group)) > 1
    ]


def _memory(points: Sequence[Point], colors: dict[str, str]) -> list[_Draw]:
    """One panel: a group for each model and size, a bar for each scheme."""
    whole = [p for p in points if p.is_whole]
    if len(_unique(p.precision for p in whole)) < 2:
        return []
    return [
        _bars(
            whole,
            colors,
            title="peak memory",
            ylabel="GB",
            xlabel="",
            label=lambda p: f"{_setting(p)}\n{p.prompt_tokens}+{p.output_tokens}",
            height=lambda p: 1e-9 * p.peak_memory_bytes,
        )
    ]


def _bars(
    points: Sequence[Point],
    colors: dict[str, str],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    label: Callable[[Point], str],
    height: Callable[[Point], float],
) -> _Draw:
    """Above each bar: how many times the FP16 bar of its group is this one."""
    labels = _unique(map(label, points))
    precisions = _unique(p.precision for p in points)
    width = 0.8 / len(precisions)
    baselines = {label(p): height(p) for p in points if p.precision == _BASELINE}

    def draw(panel: Axes) -> None:
        for i, precision in enumerate(precisions):
            mine = [p for p in points if p.precision == precision]
            shift = (i - (len(precisions) - 1) / 2) * width
            places = [labels.index(label(p)) + shift for p in mine]
            panel.bar(places, list(map(height, mine)), width, label=precision,
                      color=colors[precision])  # fmt: skip
            for place, p in zip(places, mine, strict=True):
                if precision != _BASELINE and label(p) in baselines:
                    text = f"{baselines[label(p)] / height(p):.2f}x"
                    panel.annotate(text, (place, height(p)), ha="center", va="bottom",
                                   fontsize=6, rotation=90)  # fmt: skip
        panel.margins(y=0.15)
        crowded = len(labels) > _COLUMNS
        panel.set_xticks(range(len(labels)), labels, fontsize=7, rotation=60 if crowded else 0)
        panel.set(ylabel=ylabel, xlabel=xlabel)
        panel.set_title(title, fontsize=9)

    return draw


def _lines(points: Sequence[Point], colors: dict[str, str], *, by: str) -> list[_Draw]:
    """Decode tokens per second against batch or context: a panel for each model, a line for each
    scheme."""
    whole = [p for p in points if p.decode_tok_s is not None and p.is_whole]
    if by == "batch":
        groups = _grouped(whole, lambda p: (p.model, p.tp, p.prompt_tokens, p.output_tokens))
    else:
        groups = _grouped(whole, lambda p: (p.model, p.tp, p.batch))
    several = [group for group in groups if len(_unique(getattr(p, by) for p in group)) > 1]
    return [_line_panel(group, colors, by) for group in several]


def _line_panel(group: Sequence[Point], colors: dict[str, str], by: str) -> _Draw:
    first = group[0]
    size = f"{first.prompt_tokens}+{first.output_tokens}" if by == "batch" else ""
    title = f"{_setting(first, with_batch=by != 'batch')} {size}"
    xlabel = "batch" if by == "batch" else "tokens of a sequence at its end"

    def draw(panel: Axes) -> None:
        for line in _grouped(group, lambda p: p.precision):
            ordered = sorted(line, key=lambda p: int(getattr(p, by)))
            xs = [getattr(p, by) for p in ordered]
            ys = [p.decode_tok_s or 0.0 for p in ordered]
            name = ordered[0].precision
            panel.plot(xs, ys, marker="o", markersize=3, label=name, color=colors[name])
        xs = sorted(_unique(getattr(p, by) for p in group))
        panel.set_xscale("log", base=2)
        panel.set_xticks(xs, [f"{x:,}" for x in xs], fontsize=7)
        panel.set_ylim(bottom=0)
        panel.set(xlabel=xlabel, ylabel="decode tok/s")
        panel.set_title(title, fontsize=9)

    return draw


def _accuracy(rows: Sequence[Row], colors: dict[str, str]) -> list[_Draw]:
    """Perplexity against the size of the weights, a panel for each model; then against the decode
    rate, a panel for each model and request that several schemes have."""
    known = [row for row in rows if row["metrics"] and row["quality"]]
    timed = [row for row in known if row["metrics"]["decode_tok_s"] is not None]
    sizes = [
        _accuracy_panel(
            [same[0] for same in _grouped(group, precision_name)],
            colors,
            title=model_name(group[0]),
            xlabel="weights, GB",
            cost=lambda row: 1e-9 * float(row["metrics"]["weights_bytes"]),
        )
        for group in _grouped(known, model_name)
    ]
    rates = [
        _accuracy_panel(
            group,
            colors,
            title=_setting(points_of(group[:1])[-1]),
            xlabel="decode tok/s",
            cost=lambda row: -float(row["metrics"]["decode_tok_s"]),
        )
        for group in _grouped(timed, lambda row: points_of([row])[-1].setting)
        if len(group) > 1
    ]
    return sizes + rates


def _accuracy_panel(
    rows: Sequence[Row],
    colors: dict[str, str],
    *,
    title: str,
    xlabel: str,
    cost: Callable[[Row], float],
) -> _Draw:
    """cost: less is better; shown as its absolute value. A line joins what nothing beats in both
    (the Pareto front)."""
    points = [(cost(row), float(row["quality"]["ppl"]["perplexity"])) for row in rows]
    front = sorted(point for point in points if not _is_beaten(point, points))

    def draw(panel: Axes) -> None:
        panel.plot([abs(x) for x, _ in front], [y for _, y in front], "--", color="0.7", zorder=0)
        for row, (x, ppl) in zip(rows, points, strict=True):
            name, at = precision_name(row), abs(x)
            panel.plot([at], [ppl], "o", color=colors[name])
            panel.annotate(name, (at, ppl), textcoords="offset points", xytext=(4, 4), fontsize=7)
        panel.margins(0.2)
        panel.set(xlabel=xlabel, ylabel="perplexity")
        panel.set_title(title, fontsize=9)

    return draw


def _is_beaten(point: tuple[float, float], points: Sequence[tuple[float, float]]) -> bool:
    return any(other[0] <= point[0] and other[1] <= point[1] and other != point for other in points)


def _setting(point: Point, *, with_batch: bool = True) -> str:
    ranks = f", tp {point.tp}" if point.tp > 1 else ""
    return f"{point.model}{ranks}" + (f", batch {point.batch}" if with_batch else "")


def _unique(values: Iterable[_T]) -> list[_T]:
    return list(dict.fromkeys(values))


def _grouped(values: Iterable[_T], key: Callable[[_T], Any]) -> list[list[_T]]:
    groups: dict[Any, list[_T]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return list(groups.values())
