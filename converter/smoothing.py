"""Factors of SmoothQuant from a calibration: one alpha for all linears, or the best for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flexq_ft import _native
from flexq_ft.converter.calibration import (
    CalibrationWindows,
    ChannelMaxima,
    SampledRows,
    calibrate,
)
from flexq_ft.converter.dtypes import FloatArray, as_float32
from flexq_ft.converter.policy import activation_bits
from flexq_ft.converter.source import Source
from flexq_ft.converter.transforms.smoothing import SMOOTHED_LINEARS, Smoothing

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Rounding", "compute_smoothing", "smoothing_factors"]

# What a search tries, beside no smoothing at all.
_ALPHAS = tuple(round(0.1 * step, 1) for step in range(1, 10))
_SEARCH_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How a scheme rounds a linear's weights and inputs. group: along K; 0: channel and token."""

    group: int
    policy: Mapping[str, Any] | None  # of w6ax

    def weights(self, w: FloatArray) -> FloatArray:
        """w [N, K] on the grid of its codes."""
        if not self.group:
            codes, channel_scales = _native.kernels.quantize_weight_int8(w)
            return _times(codes, channel_scales[:, None], w.shape[1])
        codes, group_scales = _native.kernels.quantize_weight_int6(w)
        return _times(codes, group_scales.astype(np.float32), self.group)

    def inputs(self, x: FloatArray, linear: str) -> FloatArray:
        """x [tokens, K] as the linear rounds it."""
        bits = 8
        if self.policy is not None:
            _, layer, name = linear.split(".")
            bits = activation_bits(self.policy, int(layer), name)
        if bits == 16:
            return x
        group = self.group or x.shape[1]
        codes, scales = _native.kernels.quantize_activations(x, act_bits=bits, group=group)
        return _times(codes[:, : x.shape[1]], scales, group)


class _Inputs:
    """What smoothing keeps of a linear's inputs."""

    def __init__(self, step: int) -> None:
        self.maxima = ChannelMaxima()
        self.sample = SampledRows(step) if step else None

    def add(self, x: Tensor) -> None:
        self.maxima.add(x)
        if self.sample:
            self.sample.add(x)


def compute_smoothing(
    source: Source,
    windows: CalibrationWindows,
    *,
    alpha: float | None,
    rounding: Rounding,
    device: str = "auto",
    on_layer: Callable[[int], None] = lambda layer: None,
) -> Smoothing:
    """alpha None: for each linear the one with the least squared error of its rounded output.

    Raises ConfigError, DeviceError and WeightError as calibrate does. on_layer is called after
    each decoder layer.
    """
    # Odd, so that the sample meets every position of windows, not the same few.
    step = 0 if alpha is not None else max(1, windows.tokens // _SEARCH_TOKENS) | 1
    factors: dict[str, FloatArray] = {}
    maxima: dict[str, float] = {}
    alphas: dict[str, float | None] = {}

    def statistic(linear: str) -> _Inputs:
        return _Inputs(step if _is_smoothed(linear) else 0)

    for layer in calibrate(source, windows, statistic, device=device):
        for linear, inputs in layer.statistics.items():
            largest = inputs.maxima.result()
            if _is_smoothed(linear):
                w = np.concatenate([m.weight.detach().cpu().numpy() for m in layer.linears[linear]])
                both = largest, np.abs(w).max(0)
                chosen = alpha
                if inputs.sample is not None:
                    chosen = _search(linear, inputs.sample.result(), w, both, rounding)
                    alphas[linear] = chosen
                factors[linear] = _factors(*both, chosen)
                largest = largest / factors[linear]
            maxima[linear] = float(largest.max())
        on_layer(layer.layer)
    return Smoothing(
        factors=factors,
        maxima=maxima,
        alphas=None if alpha is not None else alphas,
        tokens=windows.tokens,
    )


def _is_smoothed(linear: str) -> bool:
    return linear.rpartition(".")[2] in SMOOTHED_LINEARS


def _factors(inputs: FloatArray, weights: FloatArray, alpha: float | None) -> FloatArray:
    """alpha None: ones."""
    return np.ones_like(inputs) if alpha is None else smoothing_factors(inputs, weights, alpha)


def smoothing_factors(inputs: FloatArray, weights: FloatArray, alpha: float) -> FloatArray:
    """[K] fp32 from the channel maxima [K] of inputs and weights (docs/numerics.md, section 2)."""
    one = np.float32(1.0)
    used = (inputs > 0) & (weights > 0)
    a, w = np.where(used, inputs, one), np.where(used, weights, one)
    factors = a ** np.float32(alpha) / w ** np.float32(1.0 - alpha)
    return np.clip(factors, 2.0**-10, 2.0**10).astype(np.float32, copy=False)


def _search(
    linear: str,
    x: FloatArray,
    w: FloatArray,
    maxima: tuple[FloatArray, FloatArray],
    rounding: Rounding,
) -> float | None:
    exact = x @ w.T

    def error(alpha: float | None) -> float:
        f = _factors(*maxima, alpha)
        y = rounding.inputs(x / f, linear) @ rounding.weights(w * f).T
        return float(np.square(y - exact, out=y).sum(dtype=np.float64))

    # The first of equals: no smoothing where it helps nothing.
    return min((None, *_ALPHAS), key=error)


def _times(codes: Any, scales: Any, group: int) -> FloatArray:
    """codes [rows, K] times the scale [rows, groups] of their group."""
    return as_float32(codes * np.repeat(scales, group, axis=1)[:, : codes.shape[1]])
