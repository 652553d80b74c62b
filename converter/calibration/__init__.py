"""Calibration: statistics of the inputs of a model's linears over a text.

    windows = cut_windows(text, source, sequences=128, length=512)
    for layer in calibrate(source, windows, lambda linear: SecondMoment()):
        hessian = layer.statistics["layers.0.down"].mean()

The model runs in torch, from any source, one decoder layer in memory at a time.
"""

from __future__ import annotations

from flexq_ft.converter.calibration.calibrate import LayerInputs, calibrate
from flexq_ft.converter.calibration.model import check_device
from flexq_ft.converter.calibration.statistics import (
    ChannelMaxima,
    ChannelMoments,
    SampledRows,
    SecondMoment,
    Statistic,
)
from flexq_ft.converter.calibration.windows import CalibrationWindows, check_length, cut_windows

__all__ = [
    "CalibrationWindows",
    "ChannelMaxima",
    "ChannelMoments",
    "LayerInputs",
    "SampledRows",
    "SecondMoment",
    "Statistic",
    "calibrate",
    "check_device",
    "check_length",
    "cut_windows",
]
