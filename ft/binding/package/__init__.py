"""flexq-ft: low-bit LLM inference in FasterTransformer's formats.

Names load on first use, so that `import flexq_ft` costs nothing and `flexq_ft._native` is
importable alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexq_ft.orchestrate.api import LLM, RequestOutput, SamplingParams

__all__ = ["LLM", "RequestOutput", "SamplingParams", "__version__"]

_LAZY = {
    "LLM": "flexq_ft.orchestrate.api",
    "RequestOutput": "flexq_ft.orchestrate.api",
    "SamplingParams": "flexq_ft.orchestrate.api",
    "__version__": "flexq_ft._native",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'flexq_ft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
