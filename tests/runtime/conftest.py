"""Tests that ask for `isa` run once per build of the ops that this CPU can run, those that ask for
`backend` on the GPU too, those that ask for `device` once on each device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft._native import kernels, ops


@pytest.fixture(params=kernels.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = kernels.active_isa()
    kernels.set_isa(request.param)
    yield request.param
    kernels.set_isa(before)


def devices() -> list[str]:
    return ["cpu", "cuda"] if _native.gpus() else ["cpu"]


@pytest.fixture(params=devices())
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    ops.use_device(request.param)
    yield request.param
    ops.use_device("cpu")


@pytest.fixture(params=kernels.isas() + devices()[1:])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    before = kernels.active_isa()
    if request.param == "cuda":
        ops.use_device("cuda")
    else:
        kernels.set_isa(request.param)
    yield request.param
    ops.use_device("cpu")
    kernels.set_isa(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250311)
