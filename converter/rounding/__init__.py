"""Rounding of six-bit weights beyond the nearest code: same format, same speed, better codes."""

from __future__ import annotations

from flexq_ft.converter.rounding.calibrated import calibrated_rounders
from flexq_ft.converter.rounding.gptq import Gptq
from flexq_ft.converter.rounding.rounder import Rounder
from flexq_ft.converter.rounding.scale_search import ScaleSearch

__all__ = ["Gptq", "Rounder", "ScaleSearch", "calibrated_rounders"]
