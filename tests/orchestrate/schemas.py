"""Validation against configs/schemas, whose files refer to each other by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SCHEMAS = Path(__file__).parents[2] / "configs" / "schemas"


def validate(document: Any, schema: str, fragment: str = "") -> None:
    """Raises jsonschema.ValidationError; fragment: as `#/$defs/row`."""
    files = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    registry: Registry[Any] = Registry().with_resources(
        [
            (name, Resource.from_contents(content))
            for name, content in files.items()
            if content.get("$id") == name
        ]
    )
    Draft202012Validator({"$ref": schema + fragment}, registry=registry).validate(document)
