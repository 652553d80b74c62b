"""Checkpoints that converter tests share; made once, never changed by a test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools.checkpoints import make_checkpoint

# Awkward on purpose: short last groups, heads that cut groups, one KV head, biases, both ropes.
MODELS: dict[str, dict[str, Any]] = {
    "llama-gqa": {"hidden": 192, "heads": 6, "kv_heads": 2, "inter": 400, "head_dim": 32},
    "llama-mha": {"heads": 4, "inter": 300, "rope": "llama3", "bias": True, "dtype": "bfloat16"},
    "llama-one-kv": {"hidden": 128, "heads": 4, "kv_heads": 1, "inter": 640, "tied": True},
    "qwen2": {"family": "qwen2", "hidden": 136, "heads": 4, "kv_heads": 2, "rope": "linear"},
    "mistral": {"family": "mistral", "heads": 2, "kv_heads": 1, "dtype": "float16"},
    "opt": {"family": "opt", "hidden": 200, "heads": 4, "inter": 520, "tied": True},
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a model of MODELS."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / name
            made[name] = make_checkpoint(folder, max_shard_size="300KB", **MODELS[name])
        return made[name]

    return get


@pytest.fixture
def own_checkpoint(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy that the test may damage."""

    def get(name: str) -> Path:
        return Path(shutil.copytree(checkpoint(name), tmp_path / f"own-{name}"))

    return get


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
