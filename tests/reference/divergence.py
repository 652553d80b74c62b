"""How far two runs of one model are apart, and how far they may be: one place for every limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@dataclass
class Divergence:
    """Accumulated over teacher-forced windows; both sides saw the same ids."""

    tokens: int = 0
    loss_a: float = 0.0
    loss_b: float = 0.0
    kl_sum: float = 0.0
    agree: int = 0
    rows: int = 0
    max_abs: float = 0.0

    def add(self, ids: list[int], a: Logits, b: Logits) -> None:
        """a, b: logits [tokens, vocab] of the window `ids`."""
        assert np.isfinite(a).all(), "logits are not finite"
        self.max_abs = max(self.max_abs, float(np.abs(a - b).max()))
        la, lb = log_softmax(a), log_softmax(b)
        targets = np.asarray(ids[1:])
        index = np.arange(len(targets))
        self.loss_a -= float(la[index, targets].sum())
        self.loss_b -= float(lb[index, targets].sum())
        self.tokens += len(targets)
        self.kl_sum += float((np.exp(lb) * (lb - la)).sum())
        self.agree += int((a.argmax(-1) == b.argmax(-1)).sum())
        self.rows += len(ids)

    def add_scores(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
        """Log-probabilities of the same targets alone: perplexities, no KL and no agreement."""
        assert np.isfinite(a).all(), "log-probabilities are not finite"
        self.loss_a -= float(a.astype(np.float64).sum())
        self.loss_b -= float(b.astype(np.float64).sum())
        self.tokens += len(a)

    @property
    def perplexity_a(self) -> float:
        return float(np.exp(self.loss_a / self.tokens))

    @property
    def perplexity_b(self) -> float:
        return float(np.exp(self.loss_b / self.tokens))

    @property
    def perplexity_error(self) -> float:
        return abs(self.perplexity_a / self.perplexity_b - 1.0)

    @property
    def kl(self) -> float:
        return self.kl_sum / self.rows if self.rows else float("nan")

    @property
    def agreement(self) -> float:
        return self.agree / self.rows if self.rows else float("nan")

    def __str__(self) -> str:
        text = (
            f"{self.tokens} tokens: perplexity {self.perplexity_a:.6g} and {self.perplexity_b:.6g}"
            f" ({100 * self.perplexity_error:.4f} %)"
        )
        if self.rows:
            text += (
                f", KL {self.kl:.2e}, top-1 agreement {100 * self.agreement:.2f} %,"
                f" max |difference| {self.max_abs:.2e}"
            )
        return text


@dataclass(frozen=True)
class Rule:
    """The perplexity rule of docs/numerics.md for models with quantised activations."""

    perplexity: float
    kl: float | None = None
    agreement: float | None = None

    def check(self, d: Divergence) -> None:
        assert d.perplexity_error <= self.perplexity, str(d)
        if self.kl is not None:
            assert d.kl <= self.kl, str(d)
        if self.agreement is not None:
            assert d.agreement >= self.agreement, str(d)


TINY_FP32 = Rule(perplexity=0.0005, kl=2e-3, agreement=0.97)
TINY_LOOSE = Rule(perplexity=0.002, kl=5e-3, agreement=0.95)  # 16-bit types, across TP sizes
LARGE = Rule(perplexity=0.003)  # SmolLM2-135M

# Float activations are compared token by token; quantised activations amplify the last bit of
# any sum, so that greedy tokens of two correct implementations part ways.
GREEDY_COMPARABLE = ("fp32", "fp16", "bf16", "w8a16", "w6a16")


def assert_greedy_equal_or_tied(
    a: list[int], b: list[int], logits_a: Logits, logits_b: Logits
) -> None:
    """The margin rule. logits_*: [steps, vocab] at the same prefix, up to the first difference."""
    for step, (x, y) in enumerate(zip(a, b, strict=True)):
        if x == y:
            continue
        top = np.sort(logits_b[step])[-2:]
        margin = float(top[1] - top[0])
        largest = float(np.abs(logits_a[step] - logits_b[step]).max())
        assert margin < 2 * largest, (
            f"step {step}: token {x} against {y}; top-2 margin {margin:.3e},"
            f" largest logit difference {largest:.3e}"
        )
        return
