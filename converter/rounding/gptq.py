"""GPTQ: each weight's rounding error is made up for by the weights that are rounded after it.

With the second moments H of a linear's inputs, the error of its output is dᵀ H d for a row's error
d. Columns are rounded one after the other; what the j-th gets wrong is subtracted from the columns
still to come in the proportion that least changes the output, which is row j of the upper Cholesky
factor of H's inverse. Groups are taken in order of K, their scales searched when they are reached;
within a group, columns of large moments come first, while there are most to make up for them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flexq_ft.converter.dtypes import Array, FloatArray
from flexq_ft.converter.rounding.rounder import CODES, SCALE_FACTORS, SMALLEST_SCALE, Rounder
from flexq_ft.converter.shards import Range
from flexq_ft.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Gptq"]

DAMPING = 0.01  # of the mean second moment, added to each


class Gptq(Rounder):
    """hessian [K, K]: XᵀX over the calibration, times anything. Rounding runs on its device, and
    raises ConfigError if that of this linear has no Cholesky factor."""

    def __init__(self, hessian: Tensor, *, linear: str) -> None:
        self._hessian = hessian
        self._linear = linear
        self._lock = threading.Lock()
        self._factors: dict[tuple[Range, ...], tuple[Tensor, Tensor]] = {}

    def round(self, weights: FloatArray, groups: Sequence[Range]) -> tuple[Array, Array]:
        import torch

        order, factor = self._factored(tuple(groups))
        rest = torch.from_numpy(weights).to(self._hessian.device).double()[:, order]
        codes = torch.empty_like(rest)
        scales = torch.empty(len(rest), len(groups), dtype=torch.float16, device=rest.device)
        for index, (begin, end) in enumerate(groups):
            inner = factor[begin:end, begin:end]
            group = rest[:, begin:end]
            scales[:, index] = _scales(group.float(), 1 / inner.diagonal().square())
            errors = torch.empty_like(group)
            scale = scales[:, index].double()
            for j in range(end - begin):
                codes[:, begin + j] = (group[:, j] / scale).round().clamp(*CODES)
                error = (group[:, j] - codes[:, begin + j] * scale) / inner[j, j]
                group[:, j + 1 :] -= error[:, None] * inner[j, j + 1 :]
                errors[:, j] = error
            rest[:, end:] -= errors @ factor[begin:end, end:]
        natural = torch.empty_like(codes)
        natural[:, order] = codes
        return natural.to(torch.int8).cpu().numpy(), scales.cpu().numpy()

    def _factored(self, groups: tuple[Range, ...]) -> tuple[Tensor, Tensor]:
        """Order of columns [K], and the upper Cholesky factor of the inverse in that order."""
        with self._lock:
            if groups not in self._factors:
                self._factors[groups] = self._factor(groups)
            return self._factors[groups]

    def _factor(self, groups: tuple[Range, ...]) -> tuple[Tensor, Tensor]:
        import torch

        moments = self._hessian.diagonal()
        order = torch.cat(
            [
                begin + torch.argsort(moments[begin:end], descending=True, stable=True)
                for begin, end in groups
            ]
        )
        damped = self._hessian.double()[order][:, order]
        mean = float(damped.diagonal().mean())
        damped.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
        lower, failed = torch.linalg.cholesky_ex(damped)
        factor, failed_again = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if failed or failed_again:
            raise ConfigError(
                f"GPTQ cannot round {self._linear}: the second moments of its inputs are not"
                " positive definite on this calibration text",
                hint="a longer --calibration text, or --rounding scale-search",
            )
        return order, factor


def _scales(group: Tensor, moments: Tensor) -> Tensor:
    """[n] fp16: of each row of a group [n, k], the scale of the least weighted error."""
    import torch

    low, high = CODES
    largest = group.abs().amax(1) / high
    least = torch.full_like(largest, np.inf)
    scales = torch.empty_like(largest, dtype=torch.float16)
    weights = moments.float()
    for factor in SCALE_FACTORS:
        tried = (largest * factor).clamp_min(float(SMALLEST_SCALE)).half()
        wide = tried.float()[:, None]
        errors = (group - (group / wide).round().clamp(low, high) * wide).square() @ weights
        better = errors < least
        least = torch.where(better, errors, least)
        scales = torch.where(better, tried, scales)
    return scales
