"""Which `N-gpu` folder a MODEL path means."""

from __future__ import annotations

import re
from pathlib import Path

from flexq_ft.errors import ConfigError

__all__ = ["FOLDER_NAME", "is_model_folder", "list_model_dirs", "resolve_model_dir"]

FOLDER_NAME = re.compile(r"([1-9][0-9]*)-gpu")


def list_model_dirs(path: Path) -> dict[int, Path]:
    """Complete `N-gpu` folders under path, by size."""
    found: dict[int, Path] = {}
    if path.is_dir():
        for child in path.iterdir():
            match = FOLDER_NAME.fullmatch(child.name)
            if match and child.is_dir():
                found[int(match[1])] = child
    return dict(sorted(found.items()))


def is_model_folder(path: Path) -> bool:
    """Whether `path` is OUT or OUT/N-gpu, complete or not, rather than a checkpoint to convert."""
    return path.is_dir() and bool(_is_one_folder(path) or list_model_dirs(path))


def _is_one_folder(path: Path) -> bool:
    """A folder that lost one of its two descriptions is a faulty model folder, still no source."""
    named = FOLDER_NAME.fullmatch(path.resolve().name) is not None
    return named or any((path / name).is_file() for name in ("config.ini", "manifest.json"))


def resolve_model_dir(path: str | Path, tp: int | None = None) -> Path:
    """The folder of one tensor-parallel size that `path` (OUT or OUT/N-gpu) stands for.

    OUT: the folder of `tp` if given, else its only folder, else `1-gpu`. Raises ConfigError with
    the list of what is there.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"model folder {path} does not exist", hint="flexq-ft convert SRC OUT")
    own = FOLDER_NAME.fullmatch(path.resolve().name)
    if _is_one_folder(path):
        if own and tp not in (None, int(own[1])):
            raise ConfigError(
                f"{path} is the folder of tensor parallel size {own[1]}, but --tp {tp} was asked"
                " for",
                hint=f"{path.parent} with --tp {tp}, or --tp {own[1]}",
            )
        return path
    found = list_model_dirs(path)
    sizes = ", ".join(f"{size}-gpu" for size in found) or "none"
    if tp is not None:
        if tp in found:
            return found[tp]
        raise ConfigError(
            f"{path} has no {tp}-gpu folder (there: {sizes})",
            hint=f"flexq-ft convert SRC {path} --tp {tp}",
        )
    if len(found) == 1:
        return next(iter(found.values()))
    if 1 in found:
        return found[1]
    if not found:
        raise ConfigError(
            f"{path} is no model folder: no config.ini, manifest.json or N-gpu folder is there",
            hint="flexq-ft convert SRC OUT",
        )
    raise ConfigError(f"{path} has several folders and no 1-gpu: {sizes}", hint="--tp N")
