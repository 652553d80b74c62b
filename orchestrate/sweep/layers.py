"""A sweep file over those that it extends: keys merged, each with its file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flexq_ft.converter.options import POLICY_SCHEMES
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.sweep.marks import Location, MarkedYaml

_EXTENDS = "extends"


class LayeredYaml:
    """The file at path and, by its `extends: other.yaml`, the one below it, and so on.

    Mappings are merged key by key; a list or a value replaces what is below. Paths mean what they
    mean in their own file.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if a file is absent or no mapping, or if they go round in a circle."""
        self._documents = _chain(path)
        is_synthetic = next(
            (d.data["synthetic_weights"] for d in self._documents if "synthetic_weights" in d.data),
            False,
        )
        self.data: dict[str, Any] = {}
        for document in reversed(self._documents):
            layer = {key: value for key, value in document.data.items() if key != _EXTENDS}
            if document.path.parent.resolve() != path.parent.resolve():
                _make_absolute(layer, document.path.parent, has_shapes=bool(is_synthetic))
            self.data = _merged(self.data, layer)

    def fault(self, location: Location, text: str) -> str:
        """`sweep.yaml:7: text`, of the uppermost file that has most of the location."""
        return max(self._documents, key=lambda d: _depth(d.data, location)).fault(location, text)


def _chain(path: Path) -> list[MarkedYaml]:
    """The file itself first."""
    documents: list[MarkedYaml] = []
    while True:
        document = MarkedYaml(path)
        if not isinstance(document.data, dict):
            raise ConfigError(document.fault((), "a sweep file is a mapping of keys to values"))
        documents.append(document)
        if _EXTENDS not in document.data:
            return documents
        below = document.data[_EXTENDS]
        if not isinstance(below, str):
            raise ConfigError(document.fault((_EXTENDS,), f"extends: one file, not {below!r}"))
        path = path.parent / below
        if not path.is_file():
            raise ConfigError(document.fault((_EXTENDS,), f"extends: {path} does not exist"))
        if any(path.samefile(seen.path) for seen in documents):
            names = " -> ".join(str(seen.path) for seen in documents)
            raise ConfigError(
                document.fault((_EXTENDS,), f"extends: {names} -> {path} goes round in a circle")
            )


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        merged[key] = value
    return merged


def _depth(data: Any, location: Location) -> int:
    """How many parts of a location are there."""
    for depth, part in enumerate(location):
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if not in_list and not (isinstance(data, dict) and part in data):
            return depth
        data = data[part]
    return len(location)


def _make_absolute(layer: dict[str, Any], folder: Path, *, has_shapes: bool) -> None:
    """In place, all that names files. Names of policies and of shapes are no paths."""

    def moved(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [moved(key, item) for item in value]
        is_name = (key == "policy" and value in POLICY_SCHEMES) or (
            key == "model" and has_shapes and not str(value).endswith(".ini")
        )
        return value if is_name or not isinstance(value, str) else str((folder / value).resolve())

    quality = layer.get("quality")
    entries = [
        layer,
        layer.get("matrix"),
        layer.get("calibration"),
        quality.get("ppl") if isinstance(quality, dict) else None,
    ]
    for name in ("include", "exclude"):
        if isinstance(layer.get(name), list):
            entries += layer[name]
    for entry in entries:
        if isinstance(entry, dict):
            entry |= {
                key: moved(key, entry[key]) for key in ("model", "policy", "text") & entry.keys()
            }
