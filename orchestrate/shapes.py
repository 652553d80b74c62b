"""Model shapes by name (configs/models/*.ini): sizes without weights, for benchmarks."""

from __future__ import annotations

from pathlib import Path

import flexq_ft
from flexq_ft.errors import ConfigError, InternalError
from flexq_ft.orchestrate.suggest import nearest


def shapes_folder() -> Path:
    """In the installed package; in a source tree, beside `orchestrate`."""
    installed = Path(str(flexq_ft.__file__)).parent / "configs" / "models"
    if installed.is_dir():
        return installed
    source = Path(__file__).resolve().parents[1] / "configs" / "models"
    if source.is_dir():
        return source
    raise InternalError("the model shapes were not installed.", cause=f"there is no {installed}.")


def shape_names() -> list[str]:
    """All shapes that are known."""
    return sorted(path.stem for path in shapes_folder().glob("*.ini"))


def find_shape(name: str) -> Path:
    """The INI of a shape, by its name or its path. Raises ConfigError with the known names."""
    if name.endswith(".ini") and Path(name).is_file():
        return Path(name)
    known = shape_names()
    if name in known:
        return shapes_folder() / f"{name}.ini"
    close = nearest(name, known)
    raise ConfigError(
        f"there is no shape '{name}'." + (f" Did you mean '{close}'?" if close else ""),
        cause=f"known are {', '.join(known)}.",
        hint="one of these, or a MODEL with its files",
    )
