"""Which models can be converted, and how: one declarative spec per wiring."""

from __future__ import annotations

from flexq_ft.converter.architectures.hf_config import SUPPORTED, parse_hf_config
from flexq_ft.converter.architectures.llama import LLAMA
from flexq_ft.converter.architectures.opt import OPT
from flexq_ft.converter.architectures.spec import Architecture, Part, Split, TensorSpec, Unit

__all__ = [
    "ARCHITECTURES",
    "SUPPORTED",
    "Architecture",
    "Part",
    "Split",
    "TensorSpec",
    "Unit",
    "parse_hf_config",
]

ARCHITECTURES = {spec.wiring: spec for spec in (LLAMA, OPT)}
