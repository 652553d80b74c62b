"""The options of `flexq-ft sensitivity`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from flexq_ft.converter.options import DTYPES
from flexq_ft.orchestrate.cli.console import check_writable
from flexq_ft.orchestrate.cli.options import SIZE, device_option
from flexq_ft.orchestrate.eval.sensitivity_plot import SUFFIXES

# Every token costs a run for each input, and standard errors need several windows.
WINDOW = 512

_F = TypeVar("_F", bound=Callable[..., Any])


class ShareType(click.ParamType[float]):
    """25% or 0.25."""

    name = "share"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value).strip()
        number = text.removesuffix("%")
        try:
            share = float(number) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{text!r} is no share such as 25% or 0.25.", param, ctx)
        return share


def _known_suffix(
    ctx: click.Context, parameter: click.Parameter, value: Path | None
) -> Path | None:
    if value is not None and value.suffix not in SUFFIXES:
        raise click.BadParameter(f"{value} does not end in one of {', '.join(SUFFIXES)}.")
    return _writable(ctx, parameter, value)


def _writable(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None:
        check_writable(value)
    return value


def sensitivity_options(function: _F) -> _F:
    """The text, the measurement, the budget, and what is written."""
    options = [
        click.option(
            "--calibration", metavar="FILE|wikitext2|c4", panel="Text",
            help="A UTF-8 file, or a data set by name (needs `datasets`, and a network).",
        ),
        click.option(
            "--from", "earlier", type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="RESULT.json", panel="Text",
            help="An earlier result of MODEL (--save) instead of a text, for another budget.",
        ),
        click.option(
            "--tokens", type=SIZE, default=2048, metavar="N", panel="Text",
            help="Of the text, in windows spread evenly over it.",
        ),
        click.option(
            "--window", type=SIZE, metavar="N", panel="Text",
            help="Tokens of a window; each starts with an empty context.  [default: "
            f"{WINDOW}, or the model's positions if fewer]",
        ),
        click.option(
            "--only", type=click.Choice(["6", "8"]), default="6", panel="Measurement",
            help="What is measured of an input: its cost when only it has 6 bits and all else is "
            "float, or its gain when only it has 8 bits and all else has 6.",
        ),
        click.option(
            "--max-a8", type=ShareType(), metavar="SHARE", panel="Policy",
            help="Most multiply-adds with 8-bit inputs: 25%.  [default: those of policy flexq]",
        ),
        click.option(
            "--max-ppl", type=click.FloatRange(min=0, min_open=True), metavar="X", panel="Policy",
            help="Instead: most perplexity to lose, by prediction, 6-bit weights included.",
        ),
        click.option(
            "--policy-out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.yaml",
            panel="Policy", callback=_writable,
            help="Write the policy that was found, for --policy of the other verbs.",
        ),
        click.option(
            "--plot", "plot_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
            panel="Output", callback=_known_suffix,
            help=f"Draw the inputs' KL and what 8-bit inputs buy ({', '.join(SUFFIXES)}).",
        ),
        click.option(
            "--dtype", type=click.Choice(DTYPES), default="fp32", panel="Precision",
            help="Of everything that is not rounded.",
        ),
        device_option,
        click.option(
            "--threads", type=click.IntRange(min=1), metavar="N", panel="Parallel",
            help="Of torch.  [default: cores]",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function
