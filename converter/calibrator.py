"""Calibrator: what a conversion learns from its text, before it rounds and while it does."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from flexq_ft.converter.calibration import check_device, cut_windows
from flexq_ft.converter.options import CalibrationOptions
from flexq_ft.converter.planning import ConversionPlan
from flexq_ft.converter.progress import ProgressSink
from flexq_ft.converter.rounding import Rounder, calibrated_rounders
from flexq_ft.converter.smoothing import Rounding, compute_smoothing
from flexq_ft.converter.source import Source
from flexq_ft.converter.transforms import Smoothing

__all__ = ["Calibrator"]


class Calibrator:
    """Of a plan with a calibration. used: what was run on, empty while nothing was."""

    def __init__(
        self, plan: ConversionPlan, source: Source, calibration: CalibrationOptions
    ) -> None:
        """Raises ConfigError and DeviceError for what a calibration lacks: called before anything
        is written."""
        asked = plan.header.calibration
        assert asked is not None
        self._plan = plan
        self._device = check_device(calibration.device)
        self._windows = cut_windows(
            calibration.read(), source, sequences=asked["sequences"], length=asked["length"]
        )
        self.used = ""

    def smoothing(self, source: Source, progress: ProgressSink) -> Smoothing:
        """Of a plan that smooths."""
        header = self._plan.header
        assert header.smoothing is not None
        layers: list[int] = [0] * header.config.num_layers  # bytes
        for unit in self._plan.units:
            if unit.linear:
                layers[int(unit.linear.split(".")[1])] += sum(
                    source.tensors[part.name].source_bytes for part in unit.parts
                )
        progress.start(task="calibrating", total_bytes=sum(layers), total_tensors=len(layers))
        self.used = self._windows.describe()
        alpha = header.smoothing["alpha"]
        try:
            return compute_smoothing(
                source,
                self._windows,
                alpha=None if alpha == "search" else alpha,
                rounding=Rounding(group=header.scheme.group_size, policy=header.policy),
                device=self._device,
                on_layer=lambda layer: progress.advance(
                    tensor=f"calibration, layer {layer}", source_bytes=layers[layer]
                ),
            )
        finally:
            progress.finish()

    def rounders(self, source: Source, linears: Collection[str]) -> Iterator[dict[str, Rounder]]:
        """Of a plan that rounds by a method, layer by layer, as the calibration reaches them."""
        rounding = self._plan.header.rounding
        assert rounding is not None
        if linears:
            self.used = self._windows.describe()
        return calibrated_rounders(
            source,
            self._windows,
            method=rounding["method"],
            linears=linears,
            device=self._device,
        )
