"""libflexq_ft_mpi is the one thing that links MPI, and can be missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flexq_ft
from flexq_ft import _native
from tests.tools.mpi import needs_mpi
from tests.tools.programs import installed, program

MODULE = Path(str(_native.__file__))
PROGRAMS = ("llama_example", "multi_gpu_gpt_example")
HINT = "pip install 'flexq-ft[mpi]'"


def dynamic_section(path: Path) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    return subprocess.run(
        ["readelf", "-d", path], capture_output=True, text=True, check=True
    ).stdout


def test_nothing_else_links_mpi() -> None:
    for path in (MODULE, *map(program, PROGRAMS)):
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic_section(path))
        assert needed and not [name for name in needed if "mpi" in name.lower()]


@needs_mpi
def test_the_library_links_mpi() -> None:
    library = _native.build_info()["mpi_library"]
    assert library is not None
    assert re.search(r"\(NEEDED\).*\[libmpi", dynamic_section(Path(library)))


@pytest.mark.skipif(not installed(), reason="build trees do have their paths in RUNPATH")
def test_no_build_path_stays_in_an_installation() -> None:
    expected = {MODULE: [], **{program(name): ["$ORIGIN/../lib"] for name in PROGRAMS}}
    if library := _native.build_info()["mpi_library"]:
        expected[Path(library)] = ["$ORIGIN/../../.."]
    for path, runpath in expected.items():
        found = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", dynamic_section(path))
        assert found == runpath, path


@pytest.fixture
def package_without_library(tmp_path: Path) -> Path:
    package = tmp_path / "lib" / "flexq_ft"
    package.mkdir(parents=True)
    for path in Path(str(flexq_ft.__file__)).parent.iterdir():
        if "mpi" not in path.name:
            (package / path.name).symlink_to(path)
    return package.parent


def test_without_the_library_mpi_comm_says_what_to_type(package_without_library: Path) -> None:
    code = (
        "from flexq_ft import _native, errors\n"
        "assert _native.build_info()['mpi_library'] is None\n"
        "try:\n    _native.mpi_comm()\n"
        "except errors.DeviceError as error:\n    print(error.exit_code, error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(package_without_library)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == f"4 {HINT}\n", done.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_the_library_a_program_is_not_one_of_several(name: str, tmp_path: Path) -> None:
    alone = tmp_path / "bin" / name
    alone.parent.mkdir()
    shutil.copy(program(name), alone)
    done = subprocess.run(
        [alone],
        env={**os.environ, "OMPI_COMM_WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 4
    assert done.stderr.startswith("error: MPI is not available") and HINT in done.stderr
