"""A model folder in the making: `<tp>-gpu.partial` with a journal, synced and renamed when done.

The journal has one line per finished unit with the hashes of its files. After a kill the finished
units are verified and kept, everything else in the folder is deleted and made again. A folder
that is replaced stays in place until the new one is complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from flexq_ft.converter.dtypes import Array
from flexq_ft.errors import ConfigError

__all__ = ["FolderWriter", "HashedFile", "UnitRecord", "hash_file"]

_JOURNAL = "journal.jsonl"
_CHUNK = 1 << 20
_SYNC_THREADS = 8  # syncs wait for the disk, which orders many at a time better than one by one


@dataclass(frozen=True)
class UnitRecord:
    """A finished unit: file -> (bytes, xxh3-128), and its quality row."""

    files: Mapping[str, tuple[int, str]]
    quality: dict[str, Any] | None


class HashedFile:
    """A file that is hashed while it is written."""

    def __init__(self, path: Path) -> None:
        # Never onto a file that exists: it may be a link into the folder that is being repaired.
        self._file = FileIO(path, "x")
        self._digest = xxhash.xxh3_128()
        self._bytes = 0

    def write(self, values: Array) -> None:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        self._digest.update(data)
        self._bytes += len(data)
        while len(data):
            data = data[self._file.write(data) :]

    def close(self) -> tuple[int, str]:
        self._file.close()
        return self._bytes, self._digest.hexdigest()


def hash_file(path: Path) -> tuple[int, str] | None:
    """(bytes, xxh3-128) of a regular file; None where there is none."""
    if not path.is_file():
        return None
    digest = xxhash.xxh3_128()
    size = 0
    buffer = bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            digest.update(memoryview(buffer)[:got])
            size += got
    return size, digest.hexdigest()


class FolderWriter:
    """identity: of source and options; a partial folder of another identity is started again."""

    def __init__(self, final: Path, identity: Mapping[str, Any]) -> None:
        self.final = final
        self.partial = final.with_name(final.name + ".partial")
        self._replaced = final.with_name(final.name + ".old")
        self._identity = json.loads(json.dumps(identity))
        self._journal: int | None = None
        self.done: dict[str, UnitRecord] = {}

    def recover(self) -> None:
        """Ends a replacement that was killed between its two renames."""
        if self._replaced.is_dir():
            if self.final.exists():
                shutil.rmtree(self._replaced)
            else:
                self._replaced.rename(self.final)

    def begin(self, *, restart: bool, keep: Mapping[str, UnitRecord] | None = None) -> None:
        """Creates or resumes the partial folder; `done` then holds the units that are finished.

        keep: units of the complete folder that are good; their files are linked, not made again.
        """
        self._open_journal()
        if not restart and keep is None:
            self.done = self._read_journal()
        if not self.done:
            self._clear()
        self._write_identity()
        for stem, record in (keep or {}).items():
            for name in record.files:
                _link_or_copy(self.final / name, self.partial / name)
            self.done[stem] = record
        self._write_lines(_line(stem, record) for stem, record in self.done.items())

    def restart(self) -> None:
        """Drops all finished units."""
        self.done = {}
        self._clear()
        self._write_identity()

    def open(self, name: str) -> HashedFile:
        return HashedFile(self.partial / name)

    def commit(self, stem: str, record: UnitRecord) -> None:
        """Notes that a unit's files are complete."""
        self.done[stem] = record
        self._write_lines([_line(stem, record)])

    def finish(self, small_files: Mapping[str, bytes]) -> None:
        """Adds the small files, syncs everything and puts the folder in its place."""
        for name, content in small_files.items():
            with (self.partial / name).open("xb") as file:
                file.write(content)
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:
            list(pool.map(_sync, self.partial.iterdir()))
        (self.partial / _JOURNAL).unlink()
        _sync(self.partial)
        if self.final.exists():
            self.final.rename(self._replaced)
        self.partial.rename(self.final)
        _sync(self.final.parent)
        self.close()
        if self._replaced.exists():
            shutil.rmtree(self._replaced)

    def discard(self) -> None:
        """Removes the partial folder: nothing of it could be used again."""
        self.close()
        shutil.rmtree(self.partial, ignore_errors=True)

    def close(self) -> None:
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def _open_journal(self) -> None:
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            self._journal = os.open(self.partial / _JOURNAL, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigError(
                f"{self.partial} cannot be written",
                cause=error.strerror or str(error),
                hint="name an OUT that you may write to",
            ) from error
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise ConfigError(
                f"another conversion is writing {self.partial}", hint="wait for it, or end it"
            ) from error

    def _clear(self) -> None:
        for path in self.partial.iterdir():
            if path.name != _JOURNAL:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _read_journal(self) -> dict[str, UnitRecord]:
        """Units of an earlier run whose files are whole; deletes every other file."""
        assert self._journal is not None
        entries = []
        size = os.fstat(self._journal).st_size
        for line in os.pread(self._journal, size, 0).splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:
                break  # the line being written when the run was killed
        if not entries or entries[0].get("identity") != self._identity:
            return {}
        done = {}
        for entry in entries[1:]:
            files = {name: (size, digest) for name, (size, digest) in entry["files"].items()}
            if all(hash_file(self.partial / name) == known for name, known in files.items()):
                done[entry["unit"]] = UnitRecord(files, entry["quality"])
        kept = {name for record in done.values() for name in record.files}
        for path in self.partial.iterdir():
            if path.name not in kept and path.name != _JOURNAL:
                path.unlink()
        return done

    def _write_identity(self) -> None:
        self._write_lines([{"identity": self._identity}], truncate=True)

    def _write_lines(self, lines: Iterable[Mapping[str, Any]], *, truncate: bool = False) -> None:
        assert self._journal is not None
        if truncate:
            os.ftruncate(self._journal, 0)
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        os.pwrite(self._journal, text, os.fstat(self._journal).st_size)


def _line(stem: str, record: UnitRecord) -> dict[str, Any]:
    return {"unit": stem, "files": record.files, "quality": record.quality}


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
