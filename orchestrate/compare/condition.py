"""`--fail-if 'decode_tok_s < 0.97x'`: what makes a comparison a regression."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.compare.comparison import Comparison, Pair
from flexq_ft.orchestrate.suggest import nearest

_GRAMMAR = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?)(x?)\s*")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """metric, operator and limit; relative: the limit is of b / a, else of b."""

    text: str
    metric: str
    operator: str
    limit: float
    relative: bool

    def offenders(self, comparison: Comparison) -> list[str]:
        """A line for each pair that it holds of, or that has failed since.

        Raises ConfigError if no pair has the metric: it would hold of nothing for ever.
        """
        known = {name for pair in comparison.pairs for name in (*pair.a.metrics, *pair.b.metrics)}
        if self.metric not in known:
            close = nearest(self.metric, sorted(known))
            raise ConfigError(
                f"--fail-if '{self.text}': no case has a {self.metric}."
                + (f" Did you mean '{close}'?" if close else ""),
                hint=f"one of {', '.join(sorted(known))}",
            )
        lines = (self._offence(pair) for pair in comparison.pairs)
        return [line for line in lines if line is not None]

    def _offence(self, pair: Pair) -> str | None:
        if pair.a.error is None and pair.b.error is not None:
            return f"{pair.a.label}: it failed. {pair.b.error}"
        for change in pair.changes:
            value = change.ratio if self.relative else change.b
            if change.metric == self.metric and _OPERATORS[self.operator](value, self.limit):
                return (
                    f"{pair.a.label}: {self.metric} {change.a:,.6g} -> {change.b:,.6g}, "
                    f"{change.ratio:.3f}x"
                )
        return None


def parse_condition(text: str) -> Condition:
    """Raises ConfigError if it is not METRIC, one of < <= > >=, and a number, with x or without."""
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--fail-if '{text}' is not a condition.",
            hint="as 'decode_tok_s < 0.97x' (b over a), or 'share_of_floor < 0.92' (b itself)",
        )
    return Condition(text.strip(), match[1], match[2], float(match[3]), match[4] == "x")
