"""Numbers as sweeps and benchmarks take them: `2k`, `1,2,4`, `1-64*2`, `128-1024+128`."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_VALUES = 1000

_NUMBER = r"(\d+[kM]?)"
_RANGE = re.compile(rf"{_NUMBER}-{_NUMBER}(?:([*+]){_NUMBER})?")
_FACTORS = {"k": 1 << 10, "M": 1 << 20}


def expand_numbers(value: object) -> object:
    """`8`, `"2k"`, `"1,2,4"`, `"1-64*2"`, `"128-1024+128"`, or a list of such, as numbers.

    A range without a step counts by 1; its end is included when a step lands on it. Raises
    ValueError of other texts; what is neither text nor list is returned as it is, for pydantic.
    """
    numbers: list[object] = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            for part in item.split(","):
                numbers.extend(_expand_text(part.strip()))
        else:
            numbers.append(item)
    return numbers


def _expand_text(part: str) -> Iterable[object]:
    if re.fullmatch(_NUMBER, part):
        return [_whole(part)]
    if match := _RANGE.fullmatch(part):
        step = 1 if match[4] is None else _whole(match[4])
        return _range(_whole(match[1]), _whole(match[2]), match[3] or "+", step)
    raise ValueError(f"'{part}' is not a number above 0, or a range such as 1-16*2")


def _whole(text: str) -> int:
    return int(text.rstrip("kM")) * _FACTORS.get(text[-1], 1)


def _range(first: int, last: int, operator: str, step: int) -> Iterable[int]:
    grows = step >= 1 if operator == "+" else (step >= 2 and first >= 1)
    if first > last or not grows:
        raise ValueError(f"the range {first}-{last}{operator}{step} never reaches its end")
    value = first
    for _ in range(MAX_VALUES + 1):
        if value > last:
            return
        yield value
        value = value + step if operator == "+" else value * step
    raise ValueError(f"the range {first}-{last} has more than {MAX_VALUES} values")
