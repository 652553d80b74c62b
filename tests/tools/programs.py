"""Where the FT programs of the flexq_ft under test are."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from flexq_ft import _native

__all__ = ["installed", "program"]


def installed() -> bool:
    """Whether flexq_ft comes from an environment's site-packages, not from a build tree."""
    module = Path(str(_native.__file__)).resolve()
    return module.is_relative_to(Path(sysconfig.get_path("platlib")).resolve())


def program(name: str) -> Path:
    """The path of llama_example or multi_gpu_gpt_example."""
    module = Path(str(_native.__file__)).resolve()
    folder = Path(sysconfig.get_path("scripts")) if installed() else module.parents[2] / "bin"
    path = folder / name
    assert path.is_file(), f"{path} was not built"
    return path
