"""Entries of two results matched by what they measure, with the ratio of each of their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.bench.samples import summary
from flexq_ft.orchestrate.compare.result import Entry, Measured, Result

# Of these less is better; of all others more.
_LESS = ("_ms", "_bytes", "perplexity")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One number of a pair. ratio: b / a. interval: half the width of the ratio's 95 % interval;
    None without two requests on both sides, 0 where requests play no part."""

    metric: str
    a: float
    b: float
    ratio: float
    interval: float | None

    @property
    def verdict(self) -> str:
        """same, within noise, better or worse; a time without an interval says neither."""
        if self.ratio == 1:
            return "same"
        if self.interval is None:
            return "unknown noise"
        if abs(self.ratio - 1) <= self.interval:
            return "within noise"
        return "better" if (self.ratio < 1) == self.metric.endswith(_LESS) else "worse"


@dataclass(frozen=True)
class Pair:
    """One case, as both results have it."""

    a: Entry
    b: Entry
    changes: list[Change]


@dataclass(frozen=True)
class Comparison:
    """differences: conditions that pairs do not share, as `device: X against Y (2 cases)`."""

    a: Result
    b: Result
    pairs: list[Pair]
    only_a: list[Entry]
    only_b: list[Entry]
    differences: list[str]


def compare(a: Result, b: Result, *, allow_different: bool = False) -> Comparison:
    """Raises ConfigError if the two are of different kinds, have no case in common or, without
    allow_different, were measured under different conditions."""
    if a.kind != b.kind:
        raise ConfigError(
            f"{a.path} is of {a.kind}, {b.path} of {b.kind}.",
            cause="they measure in different ways: their numbers have no ratio.",
            hint="two results of the same command",
        )
    of_b = {entry.key: entry for entry in b.entries}
    keys = {entry.key for entry in a.entries}
    pairs = [_pair(entry, of_b[entry.key]) for entry in a.entries if entry.key in of_b]
    only_a = [entry for entry in a.entries if entry.key not in of_b]
    only_b = [entry for entry in b.entries if entry.key not in keys]
    if not pairs:
        raise ConfigError(
            f"{a.path} and {b.path} have no case in common.",
            cause=f"here is {only_a[0].label}, there {only_b[0].label}, for example.",
            hint="the same sweep, or the same options, on both sides",
        )
    differences = _differences(pairs)
    if differences and not allow_different:
        raise ConfigError(
            f"{a.path} and {b.path} are not alike; nothing was compared.",
            cause="\n         ".join(differences),
            hint="--allow-different, if that is what you want to see",
        )
    return Comparison(a, b, pairs, only_a, only_b, differences)


def _pair(a: Entry, b: Entry) -> Pair:
    # An agreement may be 0, of which nothing is a multiple.
    common = [name for name in a.metrics if name in b.metrics and a.metrics[name].value != 0]
    return Pair(a, b, [_change(name, a.metrics[name], b.metrics[name]) for name in common])


def _change(metric: str, a: Measured, b: Measured) -> Change:
    ratio = b.value / a.value
    parts = [_spread(a), _spread(b)]
    known = [part for part in parts if part is not None]
    interval = ratio * math.hypot(*known) if len(known) == 2 else None
    return Change(metric=metric, a=a.value, b=b.value, ratio=ratio, interval=interval)


def _spread(measured: Measured) -> float | None:
    """Half the width of the 95 % interval, as a share of the mean."""
    if measured.samples is None:
        return 0.0
    found = summary(measured.samples)
    if found is None or found["interval95"] is None:
        return None
    return float(found["interval95"] / found["mean"])


def _differences(pairs: Sequence[Pair]) -> list[str]:
    counts: dict[str, int] = {}
    for pair in pairs:
        a, b = pair.a.conditions, pair.b.conditions
        for name in a.keys() & b.keys():
            if a[name] != b[name]:
                text = f"{name}: {_short(a[name])} against {_short(b[name])}"
                counts[text] = counts.get(text, 0) + 1
    cases = {text: f"{n} case{'s' if n > 1 else ''}" for text, n in counts.items()}
    return [f"{text} ({cases[text]})" for text in sorted(counts)]


def _short(value: str) -> str:
    return value[:19] if value.startswith("sha256:") else value
