"""What six bits cost at each input of a model, and what a policy is predicted to lose by that.

Singles rank the inputs; what all inputs lose at 8 and at 6 bits was measured and sets the scale:

    predicted(policy) = all8 + (all6 - all8) * sum of the singles at 6 bits / sum of all singles

so that the prediction is exact at both ends, and the sum over all inputs is the loss of all at 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.eval.linear_input import LinearInput
from flexq_ft.orchestrate.eval.resumed_model import Bits

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error over windows, by the jackknife; None for one window."""

    value: float
    standard_error: float | None

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "standard_error": self.standard_error}


@dataclass(frozen=True)
class Measured:
    """Window by window: mean KL from the float model and mean loss, in nats per token."""

    kl: list[float]
    losses: list[float]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """only: the bits of a single input. 6: everything else is float, weights included, and a
    single's KL is its cost. 8: weights and all other inputs have 6 bits, and what its KL is below
    that of all inputs at 6 is its gain. all8, all6: of all inputs, with weights of 6 bits."""

    only: int
    macs: dict[LinearInput, int]
    singles: dict[LinearInput, list[float]]
    all8: Measured
    all6: Measured
    float_losses: list[float]

    def single(self, read: LinearInput) -> Estimate:
        """KL of the model in which only this input has `only` bits."""
        return self._estimate(lambda windows: _mean(self.singles[read], windows))

    def shares(self) -> dict[LinearInput, float]:
        """Of the difference between all inputs at 6 bits and all at 8, what is due to each.

        Raises ConfigError if the singles add up to nothing, so that there is no scale.
        """
        return dict(zip(self.macs, self._shares(self._all_windows).tolist(), strict=True))

    def a8_share(self, bits: Bits) -> float:
        """Of the multiply-adds, those with 8-bit inputs."""
        eight = sum(macs for read, macs in self.macs.items() if bits[read] == 8)
        return eight / sum(self.macs.values())

    def predicted_kl(self, bits: Bits) -> Estimate:
        """From the float model, in nats per token. bits: 6 or 8, of every input."""
        return self._estimate(
            lambda windows: self._between(self.all8.kl, self.all6.kl, bits, windows)
        )

    def predicted_ppl_loss(self, bits: Bits) -> Estimate:
        """Perplexity above the float model's, of the text's windows."""

        def loss(windows: NDArray[np.intp]) -> float:
            mean = self._between(self.all8.losses, self.all6.losses, bits, windows)
            return math.exp(mean) - math.exp(_mean(self.float_losses, windows))

        return self._estimate(loss)

    def measured_kl(self, measured: Measured) -> Estimate:
        return self._estimate(lambda windows: _mean(measured.kl, windows))

    def measured_ppl_loss(self, measured: Measured) -> Estimate:
        return self._estimate(
            lambda windows: (
                math.exp(_mean(measured.losses, windows))
                - math.exp(_mean(self.float_losses, windows))
            )
        )

    def saved_share_for(self, ppl_loss: float) -> float | None:
        """The sum of shares that must have 8 bits for this loss of perplexity, at most; None if
        even all inputs at 8 bits lose more."""
        windows = self._all_windows
        six, eight = _mean(self.all6.losses, windows), _mean(self.all8.losses, windows)
        target = math.log(math.exp(_mean(self.float_losses, windows)) + ppl_loss)
        if six <= target:
            return 0.0
        return None if eight > target else (six - target) / (six - eight)

    @cached_property
    def _matrix(self) -> _Floats:
        """[inputs, windows], what each input costs at 6 bits."""
        single = np.array([self.singles[read] for read in self.macs])
        return single if self.only == 6 else np.array(self.all6.kl) - single

    @property
    def _all_windows(self) -> NDArray[np.intp]:
        return np.arange(len(self.float_losses))

    def _shares(self, windows: NDArray[np.intp]) -> _Floats:
        costs: _Floats = self._matrix[:, windows].mean(axis=1)
        total = costs.sum()
        if total <= 0:
            raise ConfigError(
                f"the inputs' costs add up to {total:.3g} nats: they cannot be told from 0.",
                hint="more --tokens",
            )
        return np.asarray(costs / total)

    def _between(
        self, eight: list[float], six: list[float], bits: Bits, windows: NDArray[np.intp]
    ) -> float:
        at_six = np.array([bits[read] == 6 for read in self.macs])
        low, high = _mean(eight, windows), _mean(six, windows)
        return low + (high - low) * float(self._shares(windows)[at_six].sum())

    def _estimate(self, of: Callable[[NDArray[np.intp]], float]) -> Estimate:
        """Windows are what is independent here: tokens of one share their context. Every number
        of a window moves together, so each is left out of all of them at once."""
        windows = self._all_windows
        count = len(windows)
        if count < 2:
            return Estimate(of(windows), None)
        without = np.array([of(np.delete(windows, i)) for i in range(count)])
        variance = (count - 1) / count * ((without - without.mean()) ** 2).sum()
        return Estimate(of(windows), math.sqrt(variance))


def uniform_bits(inputs: Iterable[LinearInput], bits: int) -> dict[LinearInput, int]:
    return dict.fromkeys(inputs, bits)


def _mean(values: list[float], windows: NDArray[np.intp]) -> float:
    return float(np.asarray(values)[windows].mean())
