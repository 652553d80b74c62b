"""The collectives among real ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.mpi.comm_rank import COUNTS, values
from tests.tools.mpi import needs_mpi, run_ranks

pytestmark = needs_mpi

SCRIPT = Path(__file__).parent / "comm_rank.py"
Found = list[dict[str, Any]]


def run_case(ranks: int, out: Path, case: str = "collectives") -> Found:
    done = run_ranks(ranks, [sys.executable, SCRIPT, case, out])
    assert done.returncode == 0, done.stderr
    return [dict(np.load(out / f"{rank}.npz")) for rank in range(ranks)]


@pytest.fixture(scope="module", params=[2, 3, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run_case(request.param, tmp_path_factory.mktemp("ranks"))


def test_each_rank_knows_its_place(found: Found) -> None:
    assert [list(one["place"]) for one in found] == [[r, len(found)] for r in range(len(found))]


@pytest.mark.parametrize("count", COUNTS)
def test_sums_are_added_in_rank_order_on_every_rank(found: Found, count: int) -> None:
    expected = values(0, count)
    for rank in range(1, len(found)):
        expected = expected + values(rank, count)
    for one in found:
        np.testing.assert_array_equal(one[f"sum.{count}"].view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("count", COUNTS)
def test_gathers_are_in_rank_order(found: Found, count: int) -> None:
    expected = np.stack([values(rank, count) for rank in range(len(found))])
    for one in found:
        np.testing.assert_array_equal(one[f"all.{count}"], expected)


def test_broadcasts_carry_any_length_from_any_rank(found: Found) -> None:
    for root in range(len(found)):
        for length in (0, 1, 70_001):
            for one in found:
                assert one[f"from.{root}.{length}"].tobytes() == bytes([root + 1]) * length


def test_an_mpi_that_mpi4py_started_is_joined(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    found = run_case(2, tmp_path, "mpi4py")
    assert [int(one["mpi4py"][0]) for one in found] == [3, 3]


def test_abort_ends_ranks_that_wait_with_its_code(tmp_path: Path) -> None:
    assert run_ranks(2, [sys.executable, SCRIPT, "abort", tmp_path]).returncode == 5


def run_alone(**env: str) -> subprocess.CompletedProcess[str]:
    code = (
        "from flexq_ft import _native, errors\n"
        "try:\n    print('size', _native.mpi_comm().size)\n"
        "except errors.DeviceError as error:\n    print(error.report())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_without_a_launcher_the_world_is_one_rank() -> None:
    assert run_alone().stdout == "size 1\n"


def test_a_launcher_of_another_mpi_is_noticed() -> None:
    """PMI_SIZE is what MPICH's mpirun sets: each process would be a world of its own."""
    assert "3 processes were started, but MPI sees 1" in run_alone(PMI_SIZE="3").stdout
