"""Every test that asks for `isa` runs once per build of the ops that this CPU can run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from flexq_ft._native import kernels


@pytest.fixture(params=kernels.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = kernels.active_isa()
    kernels.set_isa(request.param)
    yield request.param
    kernels.set_isa(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250311)
