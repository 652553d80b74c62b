"""YAML that remembers its lines, so that an error in a sweep file names the line to mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from flexq_ft.errors import ConfigError

# Where something stands in a document: mapping keys and list positions, outermost first.
Location = Sequence[str | int]


class MarkedYaml:
    """One YAML document, its plain data, and the line of each key and item."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if the file is absent, not YAML, or has a key twice."""
        self.path = path
        try:
            loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} cannot be read.", cause=str(error)) from error
        try:
            root = loader.get_single_node()
            self._lines: dict[tuple[str | int, ...], int] = {(): 1}
            if root is not None:
                self._walk(root, ())
            self.data: Any = None if root is None else loader.construct_document(root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark is not None else 1
            raise ConfigError(f"{path}:{line}: {error.problem or error.context}") from error
        except RecursionError as error:
            raise ConfigError(f"{path} holds itself, or is nested too deeply.") from error
        finally:
            loader.dispose()

    def line(self, location: Location) -> int:
        """Line (from 1) of what is at location, or of the nearest thing around it."""
        parts = tuple(location)
        while parts not in self._lines:
            parts = parts[:-1]
        return self._lines[parts]

    def fault(self, location: Location, text: str) -> str:
        """`sweep.yaml:7: text`."""
        return f"{self.path}:{self.line(location)}: {text}"

    def _walk(self, node: yaml.Node, at: tuple[str | int, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = str(key.value)
                if (*at, name) in self._lines:
                    raise yaml.MarkedYAMLError(
                        problem=f"key '{name}' stands twice", problem_mark=key.start_mark
                    )
                self._lines[(*at, name)] = key.start_mark.line + 1
                self._walk(value, (*at, name))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._lines[(*at, index)] = value.start_mark.line + 1
                self._walk(value, (*at, index))


def unknown_key(name: str, known: Iterable[str]) -> str:
    """`unknown key 'batchs'; did you mean 'batch'?`, or the keys that exist."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"unknown key '{name}'; did you mean '{near[0]}'?"
    return f"unknown key '{name}'; known: {', '.join(names)}"
