"""A sensitivity as tables, Markdown, JSON, and the head of a policy file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from flexq_ft.orchestrate.eval.linear_input import LinearInput
from flexq_ft.orchestrate.eval.resumed_model import Bits
from flexq_ft.orchestrate.eval.sensitivity import Estimate, Measured, Sensitivity, uniform_bits

# FlexQ's choice is right where none of its share is found whose KL is below it by more than this.
_ALIKE = 0.05

FLEXQ = "flexq"
SAME_SHARE = "found, share of flexq"

_POLICY_TITLES = (
    "policy", "8-bit inputs", "KL predicted", "KL measured", "perplexity lost, predicted",
    "measured",
)  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """A policy, and what it was measured to lose on the calibration text; None: it was not run."""

    name: str
    bits: Bits
    measured: Measured | None


@dataclass(frozen=True)
class Judgement:
    """What a sensitivity says: flexq beside the policy found for the same share of multiply-adds,
    and that for the budget that was asked for, if any."""

    sensitivity: Sensitivity
    flexq: Judged
    same_share: Judged
    asked: Judged | None = None

    @property
    def found(self) -> Judged:
        """The policy to write: without a budget that of flexq's share."""
        return self.asked or self.same_share

    def policies(self) -> list[Judged]:
        """All of them, after the ends of the scale."""
        known = self.sensitivity
        ends = [
            Judged("w6a8", uniform_bits(known.macs, 8), known.all8),
            Judged("w6a6", uniform_bits(known.macs, 6), known.all6),
        ]
        return [*ends, self.flexq, self.same_share, *([self.asked] if self.asked else [])]

    def verdict(self) -> str:
        """Whether FlexQ's choice is right for this model."""
        known = self.sensitivity
        theirs, ours = (
            known.measured_kl(one.measured).value
            for one in (self.flexq, self.same_share)
            if one.measured is not None
        )
        eight = "/".join(
            dict.fromkeys(r.linear for r, bits in self.flexq.bits.items() if bits == 8)
        )
        start = (
            f"FlexQ's choice, 8 bits into every {eight}, has {known.a8_share(self.flexq.bits):.1%} "
            f"of the multiply-adds and a KL of {theirs:.5f}; the best found of that share has "
            f"{ours:.5f}"
        )
        if ours > (1 - _ALIKE) * theirs:
            return f"{start}. It is right for this model."
        return f"{start}, {1 - ours / theirs:.0%} less. It is not the best for this model."

    def to_json(self) -> dict[str, Any]:
        known, shares = self.sensitivity, self.sensitivity.shares()
        return {
            "only": known.only,
            "inputs": [
                {
                    "layer": read.layer,
                    "linear": read.linear,
                    "macs": macs,
                    "kl": known.single(read).to_json(),
                    "window_kl": known.singles[read],
                    "share": shares[read],
                }
                for read, macs in known.macs.items()
            ],
            "policies": [self._policy(one) for one in self.policies()],
            "verdict": self.verdict(),
            "float_perplexity": self._float_perplexity(),
            "float_window_losses": known.float_losses,
        }

    def comments(self, *, model: str, text: str) -> list[str]:
        """The head of found's policy file. text: how the calibration text was read."""
        known, found = self.sensitivity, self.found
        kl, loss = known.predicted_kl(found.bits), known.predicted_ppl_loss(found.bits)
        return [
            f"Found for {model} by flexq-ft sensitivity: 8 bits where they save most of the",
            "divergence from the float model for their multiply-adds.",
            f"Calibration: {text}.",
            f"{found.name}: 8-bit inputs have {known.a8_share(found.bits):.1%} of the "
            "multiply-adds.",
            f"Predicted with 6-bit weights: KL {_value(kl, '.5f')} nats per token,",
            f"{_value(loss, '.4f')} of perplexity lost (float {self._float_perplexity():.4f}).",
        ]

    def tables(self) -> list[Table]:
        """For a terminal: the inputs, then the policies."""
        inputs, policies = self._input_lines(), self._policy_lines()
        scope = "is at 6 bits" if self.sensitivity.only == 6 else "is at 8 bits, all others at 6"
        return [
            _table(f"KL in 1e-3 nats per token when only that input {scope}", inputs),
            _table("Policies, with 6-bit weights, on the calibration text", policies),
        ]

    def markdown(self, *, text: str) -> str:
        lines = [*_markdown(self._input_lines()), "", *_markdown(self._policy_lines()), ""]
        return "\n".join([*lines, self.verdict(), "", f"Calibration: {text}."]) + "\n"

    def _policy(self, one: Judged) -> dict[str, Any]:
        known, ran = self.sensitivity, one.measured
        layers: dict[str, list[int]] = {}
        for read, bits in one.bits.items():
            layers.setdefault(read.linear, []).extend([read.layer] if bits == 8 else [])
        return {
            "name": one.name,
            "a8_share": known.a8_share(one.bits),
            "predicted_kl": known.predicted_kl(one.bits).to_json(),
            "predicted_ppl_loss": known.predicted_ppl_loss(one.bits).to_json(),
            "kl": ran and known.measured_kl(ran).to_json(),
            "ppl_loss": ran and known.measured_ppl_loss(ran).to_json(),
            "window_kl": ran and ran.kl,
            "window_losses": ran and ran.losses,
            "a8_layers": layers,
        }

    def _input_lines(self) -> list[list[str]]:
        """Titles, a line a layer, and what a linear's inputs amount to in all layers."""
        known, shares = self.sensitivity, self.sensitivity.shares()
        linears = list(dict.fromkeys(read.linear for read in known.macs))
        lines = [["layer", *linears]]
        for layer in dict.fromkeys(read.layer for read in known.macs):
            cells = [known.single(LinearInput(layer, linear)) for linear in linears]
            lines.append([str(layer), *(_value(cell, ".3f", scale=1e3) for cell in cells)])
        for title, amounts in (("of the loss", shares), ("of the multiply-adds", known.macs)):
            total = sum(amounts.values())
            sums = (sum(v for r, v in amounts.items() if r.linear == name) for name in linears)
            lines.append([title, *(f"{amount / total:.1%}" for amount in sums)])
        return lines

    def _policy_lines(self) -> list[list[str]]:
        return [list(_POLICY_TITLES), *map(self._policy_cells, self.policies())]

    def _policy_cells(self, one: Judged) -> list[str]:
        known, ran = self.sensitivity, one.measured
        return [
            one.name,
            f"{known.a8_share(one.bits):.1%}",
            _value(known.predicted_kl(one.bits), ".5f"),
            "-" if ran is None else _value(known.measured_kl(ran), ".5f"),
            _value(known.predicted_ppl_loss(one.bits), ".4f"),
            "-" if ran is None else _value(known.measured_ppl_loss(ran), ".4f"),
        ]

    def _float_perplexity(self) -> float:
        losses = self.sensitivity.float_losses
        return math.exp(math.fsum(losses) / len(losses))


def _value(estimate: Estimate, form: str, *, scale: float = 1.0) -> str:
    text = f"{estimate.value * scale:{form}}"
    error = estimate.standard_error
    return text if error is None else f"{text} ±{error * scale:{form}}"


def _table(title: str, lines: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if index else "left")
    for line in lines[1:]:
        table.add_row(*line)
    return table


def _markdown(lines: Iterable[Sequence[str]]) -> list[str]:
    titles, *rows = lines
    marks = [":--", *("--:" for _ in titles[1:])]
    return ["| " + " | ".join(cells) + " |" for cells in (titles, marks, *rows)]
