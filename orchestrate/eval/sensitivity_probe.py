"""The runs behind a sensitivity: one for each input and window, and of whole policies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flexq_ft.errors import WeightError
from flexq_ft.orchestrate.eval.linear_input import LinearInput
from flexq_ft.orchestrate.eval.resumed_model import Bits, ResumedModel
from flexq_ft.orchestrate.eval.sensitivity import Measured, Sensitivity, uniform_bits

if TYPE_CHECKING:
    import torch

Advance = Callable[[int, str], None]
Singles = dict[LinearInput, list[float]]


class SensitivityProbe:
    """A model over windows of a text. The float model's log-probabilities are kept in memory:
    4 bytes x tokens x vocabulary."""

    def __init__(
        self, model: ResumedModel, windows: Sequence[list[int]], *, advance: Advance
    ) -> None:
        """advance: told of runs and of what is being run; there are steps() and, for each call of
        measure, one a window."""
        self._model = model
        self._windows = windows
        self._advance = advance
        self._float: list[torch.Tensor] = []

    @staticmethod
    def steps(model: ResumedModel, windows: int) -> int:
        """Of a call of sensitivity()."""
        return windows * (len(model.macs) + 3)

    def sensitivity(self, *, only: int) -> Sensitivity:
        """Of every input. Rounds the weights, so that it can be called once.

        Raises WeightError if the model gives a logit that is not finite.
        """
        inputs = self._model.macs
        singles: Singles = {read: [] for read in inputs}
        six, losses = uniform_bits(inputs, 6), []
        for index, ids in enumerate(self._windows):
            reference = self._start(index, {}, "float")
            self._float.append(reference)
            losses.append(_loss(reference, ids))
            if only == 6:
                self._each(index, 6, singles)
        self._model.round_weights()
        all8 = self.measure(uniform_bits(inputs, 8), "w6a8")
        all6 = Measured([], [])
        for index, ids in enumerate(self._windows):
            _add(all6, self._float[index], self._start(index, six, "w6a6"), ids)
            if only == 8:
                self._each(index, 8, singles)
        return Sensitivity(
            only=only,
            macs=dict(inputs),
            singles=singles,
            all8=all8,
            all6=all6,
            float_losses=losses,
        )

    def measure(self, bits: Bits, name: str) -> Measured:
        """A policy, with weights of 6 bits; after sensitivity()."""
        measured = Measured([], [])
        for index, ids in enumerate(self._windows):
            _add(measured, self._float[index], self._start(index, bits, name), ids)
        return measured

    def _each(self, index: int, bits: int, singles: Singles) -> None:
        """Every input of the window that was started."""
        for read, kept in singles.items():
            kept.append(mean_kl(self._float[index], self._model.change(read, bits)))
            self._advance(1, str(read))

    def _start(self, index: int, bits: Bits, name: str) -> torch.Tensor:
        logprobs = self._model.start(self._windows[index], bits)
        self._advance(1, name)
        if not math.isfinite(float(logprobs.sum())):
            raise WeightError(
                f"the model ({name}) gives logits that are not finite in window {index}.",
                cause="there is no divergence from or to such a distribution.",
                hint="dtype fp32 or bf16, if the model was trained in bf16",
            )
        return logprobs


def mean_kl(reference: torch.Tensor, ours: torch.Tensor) -> float:
    """KL(reference || ours) in nats, the mean over all positions but the last, which predicts no
    token of the window. Both: log-probabilities [tokens, vocab]."""
    import torch

    p, distance = reference[:-1].exp(), (reference - ours)[:-1]
    # As both sum to 1, sum p * distance is this sum, none of whose terms is negative: a small KL
    # would be lost in what the first orders leave of each other in fp32.
    return float((p * (torch.expm1(-distance) + distance)).sum(-1).mean())


def _add(measured: Measured, reference: torch.Tensor, ours: torch.Tensor, ids: list[int]) -> None:
    measured.kl.append(mean_kl(reference, ours))
    measured.losses.append(_loss(ours, ids))


def _loss(logprobs: torch.Tensor, ids: list[int]) -> float:
    import torch

    targets = torch.tensor(ids[1:], device=logprobs.device)
    return -float(logprobs[:-1].gather(1, targets[:, None]).mean())
