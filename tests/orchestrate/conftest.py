"""Fixtures of the orchestrate tests: the command line on a fake model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexq_ft.orchestrate.api import LLM
from flexq_ft.orchestrate.cli import load
from tests.orchestrate.fakes import FakeNative, Script, fake_llm

REPO = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_mpi_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may themselves be run by mpirun or srun; what they test must not notice."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def use_model(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """`use_model(script, …)`: MODEL on every command line is this one; returns LLM's keywords."""

    def use(script: Script | FakeNative, **options: Any) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def make(model: Path, **keywords: Any) -> LLM:
            calls.append(keywords)
            return fake_llm(script, **options)

        monkeypatch.setattr(load, "LLM", make)
        return calls

    return use


@pytest.fixture(scope="session")
def schemas() -> Path:
    return REPO / "configs" / "schemas"
