"""Rounders that know a linear's inputs, made layer by layer while a calibration runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from flexq_ft.converter.calibration import (
    CalibrationWindows,
    ChannelMoments,
    LayerInputs,
    SecondMoment,
    calibrate,
)
from flexq_ft.converter.rounding.gptq import Gptq
from flexq_ft.converter.rounding.rounder import Rounder
from flexq_ft.converter.rounding.scale_search import ScaleSearch
from flexq_ft.converter.source import Source

__all__ = ["calibrated_rounders"]

_Inputs = SecondMoment | ChannelMoments


def calibrated_rounders(
    source: Source,
    windows: CalibrationWindows,
    *,
    method: str,
    linears: Collection[str],
    device: str,
) -> Iterator[dict[str, Rounder]]:
    """For each layer, the rounders of those of `linears` ("layers.0.qkv", …) that it has; ends with
    the last. method: gptq | scale-search.

    The inputs are those of the source's own weights: rounding one linear does not wait for another,
    and a conversion that resumes gives the same bytes. Raises what calibrate raises.
    """
    last = max((int(linear.split(".")[1]) for linear in linears), default=-1)
    if last < 0:
        return

    def wanted(linear: str) -> _Inputs | None:
        if linear not in linears:
            return None
        return SecondMoment() if method == "gptq" else ChannelMoments()

    layers: Iterator[LayerInputs[_Inputs]] = calibrate(source, windows, wanted, device=device)
    for layer in layers:
        yield {linear: _rounder(linear, inputs) for linear, inputs in layer.statistics.items()}
        if layer.layer == last:
            return


def _rounder(linear: str, inputs: _Inputs) -> Rounder:
    if isinstance(inputs, SecondMoment):
        return Gptq(inputs.mean(), linear=linear)
    return ScaleSearch(inputs.result())
