"""Small JSON files of a checkpoint, read with bounds and typed errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flexq_ft.errors import WeightError

__all__ = ["read_json_object", "refuse_lfs_pointer"]

_MAX_BYTES = 64 << 20
_LFS_POINTER = b"version https://git-lfs."


def refuse_lfs_pointer(path: Path) -> None:
    """Raises WeightError for what a clone without git-lfs has in the place of a large file."""
    with path.open("rb") as file:
        is_pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    if is_pointer:
        raise WeightError(
            f"{path.name} is a Git LFS pointer, not the file that it stands for",
            hint=f"git lfs pull, in {path.parent}",
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises WeightError naming the file."""
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise WeightError(
                f"{path.name} holds {size} bytes, more than {_MAX_BYTES}", hint="download it again"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightError(f"{path} is missing", hint="a complete Hugging Face folder") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise WeightError(
            f"{path.name} is not valid JSON", cause=str(error), hint="download it again"
        ) from error
    if not isinstance(content, dict):
        raise WeightError(f"{path.name} holds no JSON object", hint="download it again")
    return content
