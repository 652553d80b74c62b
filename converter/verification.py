"""Does a model folder hold what its manifest says? Sizes and every hash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexq_ft.converter.manifest import MANIFEST_SCHEMA
from flexq_ft.converter.writer import hash_file
from flexq_ft.errors import WeightError

__all__ = ["FACTORS_FILE", "Fault", "hashed_files", "load_manifest", "verify"]

FACTORS_FILE = "smoothing.safetensors"  # of a smoothed folder: what its weights were made with
_MAX_MANIFEST = 256 << 20


@dataclass(frozen=True)
class Fault:
    file: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file} {self.problem}"


def load_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a folder, of a schema that this version reads. Raises WeightError."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise WeightError(f"{folder} has no manifest.json", hint="flexq-ft convert SRC OUT")
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ValueError(f"it holds {path.stat().st_size} bytes")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema, files = manifest["schema"], hashed_files(manifest)
        for name, entry in files.items():
            if "/" in name or name in ("", ".", ".."):
                raise ValueError(f"{name!r} is no file name")
            int(entry["bytes"]), str(entry["xxh3_128"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightError(
            f"{path} is faulty", cause=str(error), hint="flexq-ft convert SRC OUT --force"
        ) from error
    if schema != MANIFEST_SCHEMA:
        raise WeightError(
            f"{path} has schema {schema!r}, expected {MANIFEST_SCHEMA!r}",
            hint="convert the model with this version",
        )
    result: dict[str, Any] = manifest
    return result


def hashed_files(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Every file whose size and hash the manifest holds: name -> `bytes`, `xxh3_128`."""
    smoothing = (manifest["quantization"] or {}).get("smoothing")
    factors = {FACTORS_FILE: smoothing["factors"]} if smoothing else {}
    return {**manifest["files"], **factors}


def verify(folder: str | Path) -> list[Fault]:
    """All faults of a model folder, in the order of names; empty when every byte is right.

    Raises WeightError where the manifest itself cannot be read.
    """
    folder = Path(folder)
    listed = hashed_files(load_manifest(folder))
    faults = []
    for name, entry in sorted(listed.items()):
        found = hash_file(folder / name)
        if found is None:
            faults.append(Fault(name, "is missing"))
        elif found[0] != entry["bytes"]:
            faults.append(Fault(name, f"holds {found[0]:,} bytes, expected {entry['bytes']:,}"))
        elif found[1] != entry["xxh3_128"]:
            faults.append(Fault(name, f"has hash {found[1]}, expected {entry['xxh3_128']}"))
    extra = sorted(path.name for path in folder.glob("*.bin") if path.name not in listed)
    faults += [Fault(name, "is not in the manifest") for name in extra]
    if not (folder / "config.ini").is_file():
        faults.append(Fault("config.ini", "is missing"))
    return faults
