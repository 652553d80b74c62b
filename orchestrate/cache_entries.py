"""The entries of the cache of converted models, as `flexq-ft cache` shows and chooses them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flexq_ft.errors import ConfigError, WeightError
from flexq_ft.orchestrate.model_cache import (
    ENTRY_NAME,
    IN_USE,
    REMOVED,
    SOURCE_NOTE,
    Contents,
    contents,
    is_busy,
    located,
    source_files,
)
from flexq_ft.orchestrate.suggest import refuse_unknown

SHORT_ID = 8  # digits of a key as they are shown
_LEAST_ID = 4  # digits that are taken for a key's first ones


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a conversion says of itself. name: the model's; policy: of a run that names none."""

    name: str
    scheme: str
    dtype: str
    policy: str | None
    lm_head: str
    rotated: bool
    smoothed: bool
    rounding: str

    def text(self) -> str:
        """As `w6ax in fp16, rotated, gptq, lm_head in w8`."""
        said = {"rotated": self.rotated, "smoothed": self.smoothed}
        words = [word for word, is_so in said.items() if is_so]
        words += [self.rounding] if self.rounding != "nearest" else []
        words += [f"lm_head in {self.lm_head}"] if self.lm_head in ("w8", "w6") else []
        own = self.scheme if self.scheme == self.dtype else f"{self.scheme} in {self.dtype}"
        return ", ".join([own, *words])


@dataclass(frozen=True, kw_only=True)
class Entry:
    """tp: sizes of the complete folders; unfinished, faulty: names of the others.

    source: where it was made from, if noted; source_state: unchanged, changed, gone or unknown.
    last_used: seconds since the epoch; or when it was made.
    """

    path: Path
    key: str
    model: str
    recorded: Recorded | None
    tp: tuple[int, ...]
    unfinished: tuple[str, ...]
    faulty: tuple[str, ...]  # without a manifest that can be read
    source: Path | None
    source_state: str
    obstacle: str  # why it cannot be removed now, or nothing
    total_bytes: int
    last_used: float

    @property
    def is_busy(self) -> bool:
        return self.obstacle == IN_USE

    @property
    def state(self) -> str:
        """complete if a folder is; else faulty if one looks so; else incomplete."""
        return "complete" if self.tp else "faulty" if self.faulty else "incomplete"

    def remarks(self) -> list[str]:
        """What a user should know before relying on it."""
        said = [] if self.tp else [self.state]
        if self.tp:
            said += [f"{name} is incomplete" for name in self.unfinished]
            said += [f"{name} is faulty" for name in self.faulty]
        if self.is_busy:
            said.append("in use")
        elif self.obstacle:
            said.append(self.obstacle)
        if self.source_state in ("changed", "gone"):
            said.append(f"source {self.source_state}")
        return said

    def used(self) -> datetime:
        """In local time."""
        return datetime.fromtimestamp(self.last_used, UTC).astimezone()

    def names(self) -> set[str]:
        """What a user may call its model."""
        own = {self.path.name, self.model}
        return own if self.source is None else own | {str(self.source), self.source.name}

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.key,
            "path": str(self.path),
            "model": self.model,
            "source": self.source and str(self.source),
            "source_state": self.source_state,
            "recorded": self.recorded and vars(self.recorded),
            "tp": list(self.tp),
            "state": self.state,
            "in_use": self.is_busy,
            "total_bytes": self.total_bytes,
            "last_used": self.used().astimezone(UTC).isoformat(timespec="seconds"),
        }


def find_entries(root: Path) -> tuple[list[Entry], list[str]]:
    """The entries, last used first, and the names of what is none; both empty without the folder.

    Raises ConfigError if it cannot be read.
    """
    entries, others = [], []
    try:
        for child in sorted(root.iterdir()):
            entry = _read(child)
            if entry is not None:
                entries.append(entry)
            elif not (child.suffix == ".lock" and ENTRY_NAME.fullmatch(child.stem)):
                others.append(child.name)
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise ConfigError(
            f"the cache {root} cannot be read.",
            cause=error.strerror or str(error),
            hint="--cache-dir FOLDER, if it is another",
        ) from error
    return sorted(entries, key=lambda entry: -entry.last_used), others


def select(entries: Sequence[Entry], wanted: Iterable[str]) -> list[Entry]:
    """The entries of these IDs or models, in their order. Raises ConfigError for what is none."""
    chosen: set[Path] = set()
    unknown = []
    for text in wanted:
        names = {text, str(located(Path(text)))}
        found = [entry for entry in entries if names & entry.names()]
        if not found and re.fullmatch(rf"[0-9a-f]{{{_LEAST_ID},16}}", text):
            found = [entry for entry in entries if entry.key.startswith(text)]
            if len(found) > 1:
                raise ConfigError(
                    f"'{text}' is the ID of {len(found)} entries.",
                    cause=", ".join(sorted(entry.path.name for entry in found)),
                    hint="more digits, or one of these names",
                )
        if not found:
            unknown.append(text)
        chosen |= {entry.path for entry in found}
    known = {name for entry in entries for name in (entry.key[:SHORT_ID], entry.model)}
    refuse_unknown("ID or model of the cache", unknown, known)
    return [entry for entry in entries if entry.path in chosen]


def _read(path: Path) -> Entry | None:
    match = ENTRY_NAME.fullmatch(path.name)
    if match is None or path.is_symlink() or not path.is_dir():
        return None
    try:
        last_used = max(p.stat().st_mtime for p in (path, path / SOURCE_NOTE) if p.exists())
        found = contents(path)
    except FileNotFoundError:  # removed meanwhile
        return None
    except OSError:
        found = Contents(complete=(path.name,), unfinished=(), strangers=())
    if found.strangers and not found.complete and not found.unfinished:
        return None
    described = {name: _described(path / name) for name in found.complete + found.unfinished}
    complete = () if path.name.endswith(REMOVED) else found.complete
    sound = [name for name in complete if described[name] is not None]
    recorded = next((made for made in described.values() if made is not None), None)
    source, source_state = _source(path / SOURCE_NOTE)
    return Entry(
        path=path,
        key=match["key"],
        model=recorded.name if recorded else match["model"],
        recorded=recorded,
        tp=tuple(sorted(int(name.removesuffix("-gpu")) for name in sound)),
        unfinished=tuple(name for name in described if name not in complete),
        faulty=tuple(name for name in complete if name not in sound),
        source=source,
        source_state=source_state,
        obstacle=IN_USE if is_busy(path) else found.obstacle(),
        total_bytes=_size(path),
        last_used=last_used,
    )


def _source(note: Path) -> tuple[Path | None, str]:
    """Where an entry came from, and whether that is still as it was."""
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        path, files = Path(noted["path"]), noted["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None, "unknown"
    try:
        return path, "unchanged" if source_files(path) == files else "changed"
    except (FileNotFoundError, NotADirectoryError):
        return path, "gone"
    except (OSError, ValueError):
        return path, "unknown"


def _described(folder: Path) -> Recorded | None:
    """By manifest.json, or by the journal of a folder in the making."""
    from flexq_ft.converter.verification import load_manifest

    try:
        if (folder / "manifest.json").is_file():
            return _recorded(load_manifest(folder))
        with (folder / "journal.jsonl").open(encoding="utf-8") as lines:
            made = json.loads(lines.readline())["identity"]
        kinds = ("smoothing", "rounding", "lm_head")
        return _recorded({**made, "quantization": {kind: made[kind] for kind in kinds}})
    except (WeightError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _recorded(manifest: dict[str, Any]) -> Recorded:
    quantization = manifest["quantization"] or {}
    policy = manifest["policy"]
    return Recorded(
        name=manifest["model"]["name"],
        scheme=manifest["scheme"],
        dtype=manifest["dtype"],
        policy=policy and policy["name"],
        lm_head=quantization.get("lm_head", manifest["dtype"]),
        rotated=any(entry["name"] == "rotation" for entry in manifest.get("transforms", [])),
        smoothed=bool(quantization.get("smoothing")),
        rounding=(quantization.get("rounding") or {"method": "nearest"})["method"],
    )


def _size(path: Path) -> int:
    """In bytes, of all files below; links count as themselves."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118
    return total
