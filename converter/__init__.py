"""The converter: a Hugging Face checkpoint becomes FasterTransformer weights, six bits each.

from flexq_ft.converter import ConvertOptions, convert
report = convert("llama-hf", "out", ConvertOptions(scheme="w6ax", tp=(1, 2)))
"""

from __future__ import annotations

from flexq_ft.converter.conversion import ConvertReport, FolderReport, convert, plan
from flexq_ft.converter.folder import resolve_model_dir
from flexq_ft.converter.options import ConvertOptions
from flexq_ft.converter.planning import ConversionPlan
from flexq_ft.converter.policy import resolve_policy
from flexq_ft.converter.progress import ProgressSink
from flexq_ft.converter.source import open_source
from flexq_ft.converter.verification import Fault, verify

__all__ = [
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
