"""How far a model's distributions are from those of a reference, position by position.

Teacher-forced over the same windows: KL(reference || model) in nats, and how often both would
choose the same token. More telling than perplexity, in which gains and losses cancel out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexq_ft.errors import WeightError
from flexq_ft.orchestrate.bench.samples import interval95

Logits = NDArray[np.float32]

_ROWS = 64  # at a time in fp64: the vocabulary makes them long


@dataclass
class Divergence:
    """Collected window by window; every window has the same number of positions."""

    window_kl: list[float] = field(default_factory=list)
    window_agreement: list[float] = field(default_factory=list)
    window_losses: list[float] = field(default_factory=list)
    reference_losses: list[float] = field(default_factory=list)
    _kl: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, ids: Sequence[int], reference: Logits, logits: Logits) -> None:
        """One window. reference, logits [tokens, vocab]; the last position predicts no token of
        the window and is left out. WeightError if a logit is not finite."""
        for side, values in (("the reference", reference), ("the model", logits)):
            if not np.isfinite(values).all():
                raise WeightError(
                    f"{side} gives logits that are not finite in window {len(self.window_kl)}.",
                    cause="there is no divergence from or to such a distribution.",
                    hint="dtype fp32 or bf16, if the model was trained in bf16",
                )
        targets = np.asarray(ids[1:])
        parts = [
            _rows(targets[rows], reference[:-1][rows], logits[:-1][rows])
            for rows in (slice(at, at + _ROWS) for at in range(0, len(targets), _ROWS))
        ]
        kl, agree, loss, reference_loss = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        self._kl.append(kl)
        self.window_kl.append(float(kl.mean()))
        self.window_agreement.append(float(agree.mean()))
        self.window_losses.append(float(loss.mean()))
        self.reference_losses.append(float(reference_loss.mean()))

    def to_json(self) -> dict[str, Any]:
        """Standard errors are those of the mean over windows; None for one window."""
        kl = np.concatenate(self._kl)
        return {
            "kl": {
                **_mean(self.window_kl),
                "p50": float(np.median(kl)),
                "p99": float(np.quantile(kl, 0.99)),
                "max": float(kl.max()),
            },
            "top1_agreement": _mean(self.window_agreement),
            "perplexity": math.exp(math.fsum(self.window_losses) / len(self.window_losses)),
            "reference_perplexity": math.exp(
                math.fsum(self.reference_losses) / len(self.reference_losses)
            ),
            "positions": int(kl.size),
            "window_kl": self.window_kl,
            "window_agreement": self.window_agreement,
        }


def _mean(values: list[float]) -> dict[str, Any]:
    mean, half = math.fsum(values) / len(values), interval95(values)
    several = half is not None
    return {
        "mean": mean,
        "standard_error": float(np.std(values, ddof=1)) / math.sqrt(len(values))
        if several
        else None,
        "confidence95": [mean - half, mean + half] if half is not None else None,
    }


def _rows(
    targets: NDArray[np.int64], reference: Logits, logits: Logits
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of each row: KL, whether the likeliest token is the same, and both losses."""
    ours, theirs = _log_softmax(logits), _log_softmax(reference)
    at = np.arange(len(targets))
    return (
        (np.exp(theirs) * (theirs - ours)).sum(axis=1),
        reference.argmax(axis=1) == logits.argmax(axis=1),
        -ours[at, targets],
        -theirs[at, targets],
    )


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x
