"""The cache of models converted on the fly: what lies where, its locks, and removal.

An entry is a folder MODEL-KEY with a model folder `N-gpu` for each tensor-parallel size and a note
of its source, which each use writes anew and shares a lock of. Beside it lies MODEL-KEY.lock,
locked by whoever converts into the entry or removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexq_ft.converter.folder import FOLDER_NAME
from flexq_ft.errors import ConfigError

IN_USE = "another process is using it"
SOURCE_NOTE = "source.json"
REMOVED = ".removed"  # added to the name of an entry that is being removed
ENTRY_NAME = re.compile(rf"(?P<model>.+)-(?P<key>[0-9a-f]{{16}})(?:{re.escape(REMOVED)})?")

_UNFINISHED = re.compile(rf"{FOLDER_NAME.pattern}\.(?:partial|old)")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Names in an entry. strangers: what no conversion wrote."""

    complete: tuple[str, ...]
    unfinished: tuple[str, ...]
    strangers: tuple[str, ...]

    def obstacle(self) -> str:
        """Why the entry is not the cache's to remove; else nothing."""
        names = ", ".join(self.strangers)
        return f"no conversion wrote {names} in it" if names else ""


def cache_root(cache_dir: Path | None) -> Path:
    """Where converted models are kept."""
    if cache_dir is not None:
        return cache_dir
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flexq-ft"


def located(model: Path) -> Path:
    """Absolute; a file that is itself a link keeps its name, as the key does."""
    return model.parent.resolve() / model.name


def source_files(model: Path) -> list[list[Any]]:
    """Name, size and time of each file of a checkpoint, sorted."""
    files = [model] if model.is_file() else sorted(p for p in model.iterdir() if p.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


class Use:
    """Of an entry, by a run that was given this checkpoint, which it notes.

    While the object lives, here or unpickled elsewhere, the entry is not removed.
    """

    def __init__(self, out: Path, model: Path) -> None:
        self._arguments = (out, model)
        with suppress(OSError):  # a cache that can only be read serves as well
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            handle = os.open(out / SOURCE_NOTE, flags, 0o666)
            weakref.finalize(self, os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_SH)
            note = {"path": str(located(model)), "files": source_files(model)}
            text = json.dumps(note).encode()
            os.pwrite(handle, text, 0)
            os.ftruncate(handle, len(text))

    def __reduce__(self) -> tuple[type[Use], tuple[Path, Path]]:
        return Use, self._arguments


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Two runs must not convert into one folder at the same time."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle = _hold(out, wait=True)
    except OSError as error:
        raise ConfigError(
            f"the cache {out.parent} cannot be written.",
            cause=str(error),
            hint="--cache-dir FOLDER, or convert the model first: flexq-ft convert",
        ) from error
    try:
        yield
    finally:
        if not out.exists():  # the conversion was refused, and there is no entry to lock
            with suppress(OSError):
                _lock_of(out).unlink()
        os.close(handle)


def is_busy(out: Path) -> bool:
    """Whether a process converts into it, loads it or removes it."""
    return _is_held(_lock_of(out)) or _is_held(out / SOURCE_NOTE)


def contents(entry: Path) -> Contents:
    """Raises OSError."""
    complete, unfinished, strangers = [], [], []
    for child in sorted(entry.iterdir()):
        is_folder = child.is_dir() and not child.is_symlink()
        if is_folder and FOLDER_NAME.fullmatch(child.name):
            complete.append(child.name)
        elif is_folder and _UNFINISHED.fullmatch(child.name):
            unfinished.append(child.name)
        elif is_folder or child.is_symlink() or child.name != SOURCE_NOTE:
            strangers.append(child.name)
    return Contents(
        complete=tuple(complete), unfinished=tuple(unfinished), strangers=tuple(strangers)
    )


def remove(entry: Path) -> str:
    """Deletes an entry whole; why it was left, else nothing.

    It gets another name first: a removal that is interrupted leaves nothing that looks complete.
    """
    place = entry.with_name(entry.name.removesuffix(REMOVED))
    doomed = place.with_name(place.name + REMOVED)
    try:
        with ExitStack() as locks:
            locks.callback(os.close, _hold(place, wait=False))
            if not entry.exists():
                pass  # another process was quicker
            elif why := contents(entry).obstacle():
                return why
            else:
                with suppress(FileNotFoundError):
                    note = os.open(entry / SOURCE_NOTE, os.O_RDWR)
                    locks.callback(os.close, note)
                    fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if entry != doomed:
                    if doomed.is_dir():
                        shutil.rmtree(doomed)
                    entry.rename(doomed)
                shutil.rmtree(doomed)
            _lock_of(place).unlink()
    except BlockingIOError:
        return IN_USE
    except OSError as error:
        return f"{error.filename or entry}: {error.strerror or error}"
    return ""


def _lock_of(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(REMOVED) + ".lock")


def _hold(out: Path, *, wait: bool) -> int:
    """A handle whose end is the lock's. BlockingIOError if it is another's and not waited for."""
    lock = _lock_of(out)
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), lock.lstat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # it was removed with its entry while it was waited for


def _is_held(file: Path) -> bool:
    try:
        handle = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False
