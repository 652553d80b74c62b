"""The stubs of flexq_ft._native name what the module has: a type checker knows no more."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest

from flexq_ft import _native

STUBS = Path(__file__).parents[2] / "ft/binding/package/_native"


def members(body: list[ast.stmt]) -> set[str]:
    named = {n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    annotated = {n.target for n in body if isinstance(n, ast.AnnAssign)}
    return named | {target.id for target in annotated if isinstance(target, ast.Name)}


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("stub", "module"),
    [
        ("__init__", _native),
        ("kernels", _native.kernels),
        ("ops", _native.ops),
    ],
)
def test_stubs_are_complete(stub: str, module: ModuleType) -> None:
    body = ast.parse((STUBS / f"{stub}.pyi").read_text("utf-8")).body
    submodules = {name for name, value in vars(module).items() if isinstance(value, ModuleType)}
    assert public(module) - submodules == {n for n in members(body) if not n.startswith("_")}
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            ours = public(getattr(module, node.name))
            assert {n for n in members(node.body) if not n.startswith("_")} == ours, node.name
