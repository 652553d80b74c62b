"""One line of doctor's report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """status: ok, no (cannot be used here: why), info."""

    section: str
    name: str
    status: str
    value: str
    why: str = ""
    hint: str = ""

    def to_json(self) -> dict[str, str]:
        """`hint` is called `try`, as in errors."""
        fields = dict(vars(self))
        fields["try"] = fields.pop("hint")
        return fields
