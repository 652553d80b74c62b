"""The typed errors of flexq-ft, and the exit code of each.

C++ errors arrive as the class of the same name (ft/core/error.h). Every error is a sentence that
names the thing and the numbers, a cause, and a way out.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ConfigError",
    "DeviceError",
    "FlexQFtError",
    "InternalError",
    "LaunchError",
    "OutOfMemoryError",
    "WeightError",
]


class FlexQFtError(Exception):
    """Base of all. Attributes: message, cause, hint (the `Try:` line), values, rank, host.

    `values` holds what the message names (sizes, paths, keys), for programs.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        cause: str = "",
        hint: str = "",
        rank: int | None = None,
        host: str | None = None,
        **values: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hint = hint
        self.rank = rank
        self.host = host
        self.values = values

    @property
    def kind(self) -> str:
        return type(self).__name__

    def report(self) -> str:
        """The text shown to a user: `error:`, `cause:` and `Try:` lines."""
        lines = [f"error: {self.message}"]
        if self.rank is not None:
            lines.append(f"  rank:  {self.rank}" + (f" on {self.host}" if self.host else ""))
        if self.cause:
            lines.append(f"  cause: {self.cause}")
        if self.hint:
            lines.append(f"  Try:   {self.hint}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The `error` object of the JSON envelope."""
        return {
            "kind": self.kind,
            "message": self.message,
            "cause": self.cause,
            "try": self.hint,
            "exit_code": self.exit_code,
            "rank": self.rank,
            "host": self.host,
        }


class ConfigError(FlexQFtError):
    """What the user typed: flags, YAML, a program's own INI, prompts, missing paths."""

    exit_code = 2


class WeightError(FlexQFtError):
    """A model or its files: wrong, missing, corrupt, unsupported."""

    exit_code = 3


class DeviceError(FlexQFtError):
    """A device, driver or MPI that is not available."""

    exit_code = 4


class LaunchError(FlexQFtError):
    """Ranks could not be started, or one was lost."""

    exit_code = 4


class OutOfMemoryError(FlexQFtError):
    """Memory was, or would be, exceeded."""

    exit_code = 5


class InternalError(FlexQFtError):
    """A broken invariant of flexq-ft itself: a fault to report."""

    exit_code = 1
