"""A sensitivity as a picture: every input's KL, and what 8 bits buy by share of multiply-adds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.eval.policy_search import Frontier
from flexq_ft.orchestrate.eval.sensitivity_report import Judgement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")


def require_matplotlib() -> None:
    """Raises ConfigError where it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--plot needs matplotlib.", hint="pip install 'flexq-ft[plots]'"
        ) from error


def draw(judgement: Judgement, path: Path, *, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    inputs, buys = figure.subplots(1, 2)
    _inputs(judgement, inputs)
    _frontier(judgement, buys)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def _inputs(judgement: Judgement, panel: Axes) -> None:
    known = judgement.sensitivity
    for linear in dict.fromkeys(read.linear for read in known.macs):
        reads = [read for read in known.macs if read.linear == linear]
        singles = [known.single(read) for read in reads]
        panel.errorbar(
            [read.layer for read in reads],
            [one.value for one in singles],
            yerr=[one.standard_error or 0.0 for one in singles],
            marker="o", markersize=3, linewidth=1, elinewidth=0.7, label=linear,
        )  # fmt: skip
    others = "all else float" if known.only == 6 else "all else at 6 bits"
    panel.set_yscale("log")
    panel.set(xlabel="layer", ylabel="KL from float, nats per token")
    panel.set_title(f"only that input at {known.only} bits, {others}", fontsize=9)
    panel.legend(fontsize=7)


def _frontier(judgement: Judgement, panel: Axes) -> None:
    known = judgement.sensitivity
    frontier = Frontier(known.macs, known.shares())
    low, high = np.mean(known.all8.kl), np.mean(known.all6.kl)
    shares = np.linspace(0.0, 1.0, len(frontier.saved))
    panel.plot(shares, high - (high - low) * frontier.saved, label="best, predicted", color="C7")
    for one in judgement.policies():
        if one.measured is None:
            continue
        kl = known.measured_kl(one.measured)
        panel.errorbar(
            [known.a8_share(one.bits)], [kl.value], yerr=[kl.standard_error or 0.0],
            marker="o", markersize=4, linestyle="", label=f"{one.name}, measured",
        )  # fmt: skip
    panel.set(xlabel="multiply-adds with 8-bit inputs", ylabel="KL from float, nats per token")
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_formatter(lambda share, at: f"{share:.0%}")
    panel.set_title("policies, with 6-bit weights, on the calibration text", fontsize=9)
    panel.legend(fontsize=7)
