"""What a complete folder already holds of a conversion: the units that need not be made again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexq_ft.converter.planning import ConversionPlan, Target
from flexq_ft.converter.report import Quality
from flexq_ft.converter.verification import load_manifest, verify
from flexq_ft.converter.writer import UnitRecord
from flexq_ft.errors import WeightError

__all__ = ["Existing", "examine"]


@dataclass(frozen=True, kw_only=True)
class Existing:
    """difference: empty when the folder was made from the same source with the same options.

    good: units whose files are right and whose quality row is known.
    """

    difference: str
    good: dict[str, UnitRecord]
    complete: bool


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
    good = {}
    for unit in plan.units:
        names = plan.codec(unit).files(unit, target.shards)
        row = rows.get(unit.stem)
        needs_row = bool(unit.linear) and plan.header.scheme.quantized
        if faults.isdisjoint(names) and (row or not needs_row):
            files = {
                name: (manifest["files"][name]["bytes"], manifest["files"][name]["xxh3_128"])
                for name in names
            }
            good[unit.stem] = UnitRecord(files, row)
    return Existing(difference="", good=good, complete=not faults and len(good) == len(plan.units))


def _expected(
    manifest: dict[str, Any], plan: ConversionPlan, target: Target, sha256: str
) -> dict[str, Any]:
    """The manifest this conversion would write, with the hashes that the folder's own claims."""
    files = {
        name: (spec, str(manifest["files"].get(name, {}).get("xxh3_128", "")))
        for name, spec in target.files.items()
    }
    made = plan.header.manifest(target.shards, source_sha256=sha256, files=files)
    as_read: dict[str, Any] = json.loads(json.dumps(made))
    return as_read


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    # What was chosen comes first: that the files differ then only follows from it.
    chosen = ("scheme", "dtype", "source", "architecture", "transforms")
    for key in (*chosen, *sorted((found.keys() | expected.keys()) - set(chosen))):
        if found.get(key) != expected.get(key):
            if key == "source":
                return f"its source was {found.get(key, {}).get('name')}, with other content"
            if key == "transforms":
                return f"it has {_names(found)}, this conversion {_names(expected)}"
            if key in ("files", "model", "quantization", "tensor_parallel"):
                return f"its {key} differ"
            return f"its {key} is {found.get(key)}, this conversion's is {expected.get(key)}"
    return ""


def _names(manifest: dict[str, Any]) -> str:
    """The transforms of a manifest."""
    return " and ".join(_name(entry) for entry in manifest.get("transforms", [])) or "no transform"


def _name(entry: dict[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in sorted(entry.items()) if key != "name")
    return f"{entry.get('name')} ({rest})" if rest else str(entry.get("name"))


def _quality_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of quant_report.json by tensor; a faulty report counts as none."""
    try:
        report = json.loads((folder / "quant_report.json").read_text(encoding="utf-8"))
        rows = [Quality(**row) for row in report["tensors"]]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {row.tensor: row.to_json() for row in rows}
