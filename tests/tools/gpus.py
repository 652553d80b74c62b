"""GPUs in tests: `two_devices()` to parametrise by, and the mark `needs_gpus(2)`."""

from __future__ import annotations

from typing import Any

import pytest

from flexq_ft import _native

__all__ = ["gpu_count", "needs_gpus", "two_devices"]


def gpu_count() -> int:
    return len(_native.gpus())


def needs_gpus(count: int) -> pytest.MarkDecorator:
    found = gpu_count()
    return pytest.mark.skipif(found < count, reason=f"needs {count} GPUs, {found} here")


def two_devices(gpus: int = 1) -> list[Any]:
    """Parameters: "cpu", and "cuda" where there are so many GPUs."""
    return ["cpu", pytest.param("cuda", marks=needs_gpus(gpus))]
