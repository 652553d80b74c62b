"""flexq-ft: low-bit LLM inference in FasterTransformer's formats.

Names load on first use, so that `import flexq_ft` costs nothing and `flexq_ft._native` is
importable alone.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexq_ft.orchestrate.api import LLM
    from flexq_ft.orchestrate.outputs import RequestOutput
    from flexq_ft.orchestrate.sampling import SamplingParams

# Read by libgomp when `_native` loads it. By default its waiting threads spin for milliseconds;
# beside one other busy process that made decoding four times slower, and this costs nothing.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = ["LLM", "RequestOutput", "SamplingParams", "__version__"]

_LAZY = {
    "LLM": "flexq_ft.orchestrate.api",
    "RequestOutput": "flexq_ft.orchestrate.outputs",
    "SamplingParams": "flexq_ft.orchestrate.sampling",
    "__version__": "flexq_ft._native",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'flexq_ft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
