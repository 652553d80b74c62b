"""What a complete folder already holds of a conversion: the units that need not be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexq_ft.converter.manifest import describe_transform
from flexq_ft.converter.planning import ConversionPlan, Target
from flexq_ft.converter.report import Quality
from flexq_ft.converter.verification import FACTORS_FILE, load_manifest, verify
from flexq_ft.converter.writer import UnitRecord
from flexq_ft.errors import WeightError

__all__ = ["Existing", "examine", "factors_record"]


@dataclass(frozen=True, kw_only=True)
class Existing:
    """difference: empty when the folder was made from the same source with the same options.

    good: units whose files are right and whose quality row is known. smoothing: its result, of a
    smoothed folder.
    """

    difference: str
    good: dict[str, UnitRecord]
    complete: bool
    smoothing: dict[str, Any] = field(default_factory=dict)


def examine(folder: Path, plan: ConversionPlan, target: Target, sha256: str) -> Existing:
    """Compares a folder's manifest with the plan, and its files with the manifest."""
    try:
        manifest = load_manifest(folder)
    except WeightError as error:
        return Existing(difference=error.message, good={}, complete=False)
    difference = _difference(manifest, _expected(manifest, plan, target, sha256))
    if difference:
        return Existing(difference=difference, good={}, complete=False)
    faults = {fault.file for fault in verify(folder)}
    rows = _quality_rows(folder)
    good: dict[str, UnitRecord] = {}
    smoothing = _smoothing(manifest)
    if smoothing:
        if FACTORS_FILE in faults:  # no unit fits other factors
            return Existing(difference="", good={}, complete=False)
        good[FACTORS_FILE] = factors_record(smoothing)
    for unit in plan.units:
        names = plan.codec(unit).files(unit, target.shards)
        row = rows.get(unit.stem)
        if faults.isdisjoint(names) and (row or not plan.is_quantized(unit)):
            files = {
                name: (manifest["files"][name]["bytes"], manifest["files"][name]["xxh3_128"])
                for name in names
            }
            good[unit.stem] = UnitRecord(files, row)
    complete = not faults and all(unit.stem in good for unit in plan.units)
    return Existing(difference="", good=good, complete=complete, smoothing=smoothing)


def factors_record(smoothing: Mapping[str, Any]) -> UnitRecord:
    """The unit of a smoothed folder that comes before all others: its factors."""
    factors = smoothing["factors"]
    return UnitRecord({FACTORS_FILE: (factors["bytes"], factors["xxh3_128"])}, None)


def _smoothing(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return (manifest["quantization"] or {}).get("smoothing") or {}


def _expected(
    manifest: dict[str, Any], plan: ConversionPlan, target: Target, sha256: str
) -> dict[str, Any]:
    """The manifest this conversion would write, with the hashes that the folder's own claims."""
    files = {
        name: (spec, str(manifest["files"].get(name, {}).get("xxh3_128", "")))
        for name, spec in target.files.items()
    }
    made = plan.header.manifest(
        target.shards, source_sha256=sha256, files=files, smoothing=_smoothing(manifest)
    )
    as_read: dict[str, Any] = json.loads(json.dumps(made))
    return as_read


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    # What was chosen comes first: that the files differ then only follows from it.
    chosen = ("scheme", "dtype", "source", "architecture", "transforms", "quantization")
    for key in (*chosen, *sorted((found.keys() | expected.keys()) - set(chosen))):
        if found.get(key) != expected.get(key):
            if key == "source":
                return f"its source was {found.get(key, {}).get('name')}, with other content"
            if key == "transforms":
                return f"it has {_transforms(found)}, this conversion {_transforms(expected)}"
            if key == "quantization" and (said := _quantization_difference(found, expected)):
                return said
            if key in ("files", "model", "quantization", "tensor_parallel"):
                return f"its {key} {'differ' if key == 'files' else 'differs'}"
            return f"its {key} is {found.get(key)}, this conversion's is {expected.get(key)}"
    return ""


def _quantization_difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Of what was chosen; empty if that is the same."""
    choices = {
        "smoothing": _smoothed,
        "activation scales": _scales,
        "rounding": _rounding,
        "lm_head": _head,
    }
    for name, shown in choices.items():
        theirs, ours = shown(found), shown(expected)
        if theirs != ours:
            return f"its {name}: {theirs}, this conversion's: {ours}"
    return ""


def _transforms(manifest: Mapping[str, Any]) -> str:
    return " and ".join(map(describe_transform, manifest.get("transforms", []))) or "no transform"


def _smoothed(manifest: Mapping[str, Any]) -> str:
    smoothing = _smoothing(manifest)
    if not smoothing:
        return "none"
    return f"alpha {smoothing.get('alpha')}, {_calibration(smoothing)}"


def _scales(manifest: Mapping[str, Any]) -> str:
    return str((manifest["quantization"] or {}).get("activation_scales", "dynamic"))


def _rounding(manifest: Mapping[str, Any]) -> str:
    rounding = (manifest["quantization"] or {}).get("rounding")
    if not rounding:
        return "nearest"
    return f"{rounding.get('method')} ({_calibration(rounding)})"


def _calibration(calibrated: Mapping[str, Any]) -> str:
    found = calibrated.get("calibration")
    keys = ("sequences", "length", "text_sha256")
    return ", ".join(f"{key} {found.get(key)}" for key in keys) if found else "no calibration"


def _head(manifest: Mapping[str, Any]) -> str:
    return str((manifest["quantization"] or {}).get("lm_head", manifest["dtype"]))


def _quality_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of quant_report.json by tensor; a faulty report counts as none."""
    try:
        report = json.loads((folder / "quant_report.json").read_text(encoding="utf-8"))
        rows = [Quality(**row) for row in report["tensors"]]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {row.tensor: row.to_json() for row in rows}
