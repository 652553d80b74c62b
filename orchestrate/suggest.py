"""Unknown names: one error that lists them with the nearest known ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from flexq_ft.errors import ConfigError

_LISTED = 40  # a longer list is no answer


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like this one, if any is close."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return matches[0] if matches else None


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError if a given name is not known; `what` as in `LLM() keyword`."""
    names = list(known)
    unknown = [name for name in given if name not in names]
    if not unknown:
        return
    parts = []
    for name in unknown:
        close = nearest(name, names)
        parts.append(f"'{name}'" + (f" (did you mean '{close}'?)" if close else ""))
    listed = len(names) <= _LISTED
    raise ConfigError(
        f"unknown {what}: {', '.join(parts)}.",
        cause=f"known are {', '.join(sorted(names))}." if listed else f"{len(names):,} are known.",
        hint="correct the name, or leave it out",
        unknown=unknown,
    )
