"""The converter: a Hugging Face checkpoint becomes FasterTransformer weights, six bits each.

    from flexq_ft.converter import ConvertOptions, convert
    report = convert("llama-hf", "out", ConvertOptions(scheme="w6ax", tp=(1, 2)))

Names load on first use: commands that only look up a model folder import nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexq_ft.converter.conversion import ConvertReport, FolderReport, convert, plan
    from flexq_ft.converter.folder import resolve_model_dir
    from flexq_ft.converter.options import CalibrationOptions, ConvertOptions
    from flexq_ft.converter.planning import ConversionPlan
    from flexq_ft.converter.policy import resolve_policy
    from flexq_ft.converter.progress import ProgressSink
    from flexq_ft.converter.source import open_source
    from flexq_ft.converter.verification import Fault, verify

__all__ = [
    "CalibrationOptions",
    "ConversionPlan",
    "ConvertOptions",
    "ConvertReport",
    "Fault",
    "FolderReport",
    "ProgressSink",
    "convert",
    "open_source",
    "plan",
    "resolve_model_dir",
    "resolve_policy",
    "verify",
]

_MODULES = {
    "CalibrationOptions": "options",
    "ConversionPlan": "planning",
    "ConvertOptions": "options",
    "ConvertReport": "conversion",
    "Fault": "verification",
    "FolderReport": "conversion",
    "ProgressSink": "progress",
    "convert": "conversion",
    "open_source": "source",
    "plan": "conversion",
    "resolve_model_dir": "folder",
    "resolve_policy": "policy",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
