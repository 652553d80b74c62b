"""`--calibration` and what goes with it, for verbs that learn from a text before they round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import rich_click as click

from flexq_ft.converter.options import ROUNDINGS
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.devices import check_device

_F = TypeVar("_F", bound=Callable[..., Any])


class AlphaType(click.ParamType[Any]):
    """A number, or `search`."""

    name = "alpha"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | Literal["search"]:
        if value == "search":
            return "search"
        try:
            return float(str(value))
        except ValueError:
            self.fail(f"{value!r} is neither a number from 0 to 1 nor search.", param, ctx)


def calibration_options(function: _F) -> _F:
    """Group `Calibration`."""
    options = [
        click.option(
            "--calibration", type=click.Path(path_type=Path), metavar="FILE", panel="Calibration",
            help="A text that the model runs on, in torch, to learn the range of activations.",
        ),
        click.option(
            "--calibration-sequences", type=click.IntRange(min=1), metavar="N",
            panel="Calibration", help="Windows of the text, evenly spaced.  [default: 128]",
        ),
        click.option(
            "--calibration-length", type=click.IntRange(min=1), metavar="N", panel="Calibration",
            help="Tokens of a window.  [default: 512, or the model's positions]",
        ),
        click.option(
            "--calibration-device", metavar="auto|cpu|cuda|cuda:N", callback=_known_device,
            panel="Calibration", help="Where torch runs the model.  [default: auto]",
        ),
        click.option(
            "--smooth/--no-smooth", default=None, panel="Calibration",
            help="SmoothQuant, of w8a8 and w6ax.  [default: of w8a8 with --calibration]",
        ),
        click.option(
            "--rounding", type=click.Choice(ROUNDINGS), default="nearest", show_default=True,
            panel="Calibration",
            help="Of w6ax: codes that lose less than the nearest; gptq needs --calibration.",
        ),
        click.option(
            "--smooth-alpha", type=AlphaType(), metavar="A|search", panel="Calibration",
            help="The activations' share, 0 to 1; or the best of each linear.  [default: 0.5]",
        ),
        click.option(
            "--activation-scales", type=click.Choice(["dynamic", "static"]), default="dynamic",
            panel="Calibration",
            help="Of w8a8: each token its own, or one for all tokens, from the calibration.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def calibration_choices(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of ConvertOptions. Raises ConfigError for options of a text without the text."""
    from flexq_ft.converter.options import CalibrationOptions

    details = {
        name: value
        for name in ("sequences", "length", "device")
        if (value := options[f"calibration_{name}"]) is not None
    }
    text = options["calibration"]
    if details and text is None:
        names = ", ".join(f"--calibration-{name}" for name in details)
        raise ConfigError(f"{names} without a text to calibrate on", hint="--calibration FILE")
    return {
        "calibration": None if text is None else CalibrationOptions(text=text, **details),
        "smooth": options["smooth"],
        "smooth_alpha": options["smooth_alpha"],
        "activation_scales": options["activation_scales"],
        "rounding": options["rounding"],
    }


def _known_device(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else check_device(value)
