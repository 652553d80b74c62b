"""What a calibration keeps of a linear's inputs. Each class sees every token once, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from flexq_ft.converter.dtypes import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ChannelMaxima", "ChannelMoments", "SampledRows", "SecondMoment", "Statistic"]


class Statistic(Protocol):
    def add(self, x: Tensor) -> None:
        """x [tokens, K] fp32, finite, on the calibration's device; not to be changed or kept."""


class ChannelMaxima:
    """max |x| of each input channel."""

    def __init__(self) -> None:
        self._maxima: Tensor | None = None

    def add(self, x: Tensor) -> None:
        largest = x.abs().amax(0)
        self._maxima = largest if self._maxima is None else self._maxima.maximum(largest)

    def result(self) -> FloatArray:
        """[K] fp32."""
        assert self._maxima is not None
        values: FloatArray = self._maxima.cpu().numpy()
        return values


class ChannelMoments:
    """The mean square of each input channel."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._tokens = 0

    def add(self, x: Tensor) -> None:
        squares = x.double().square().sum(0)
        self._sum = squares if self._sum is None else self._sum + squares
        self._tokens += x.shape[0]

    def result(self) -> FloatArray:
        """[K] fp32."""
        assert self._sum is not None
        values: FloatArray = (self._sum / self._tokens).float().cpu().numpy()
        return values


class SecondMoment:
    """The sum over tokens of x xᵀ, in fp32: K x K values (the Hessian of a linear's error)."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        if self._sum is None:
            self._sum = x.new_zeros(x.shape[1], x.shape[1])
        self._sum.addmm_(x.T, x)
        self.tokens += x.shape[0]

    def mean(self) -> Tensor:
        """[K, K] fp32 on the calibration's device: XᵀX / tokens."""
        assert self._sum is not None
        return self._sum / self.tokens


class SampledRows:
    """The inputs of every `step`-th token."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._rows: list[Tensor] = []
        self._skip = 0

    def add(self, x: Tensor) -> None:
        self._rows.append(x[self._skip :: self._step].cpu())
        self._skip = (self._skip - len(x)) % self._step

    def result(self) -> FloatArray:
        """[rows, K] fp32."""
        import torch

        values: FloatArray = torch.cat(self._rows).numpy()
        return values
