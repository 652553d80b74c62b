"""NCCL is opened when it is asked for, and can be missing."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from flexq_ft import _native, errors


def nccl_is_here() -> bool:
    try:
        return bool(_native.nccl_info())
    except errors.DeviceError:
        return False


needs_nccl = pytest.mark.skipif(not nccl_is_here(), reason="NCCL is not installed")


@pytest.mark.skipif(nccl_is_here(), reason="NCCL is installed")
def test_without_it_the_error_says_where_it_was_looked_for_and_what_to_type() -> None:
    for call in (_native.nccl_info, _native.nccl_unique_id):
        with pytest.raises(errors.DeviceError) as caught:
            call()
        assert "NCCL is not available" in str(caught.value)
        assert "libnccl.so.2" in (caught.value.cause or "")
        assert caught.value.hint == "pip install nvidia-nccl-cu13"


@needs_nccl
def test_it_is_named_with_its_version() -> None:
    info = _native.nccl_info()
    assert "libnccl.so" in info["path"]
    assert tuple(map(int, info["version"].split("."))) >= (2, 18, 0)


@needs_nccl
@pytest.mark.parametrize(("given", "expected"), [({}, "0"), ({"NCCL_NVLS_ENABLE": "1"}, "1")])
def test_multicast_stays_off_unless_the_user_says_so(given: dict[str, str], expected: str) -> None:
    code = (
        "import ctypes\nfrom flexq_ft import _native\n_native.nccl_info()\n"
        "get = ctypes.CDLL(None).getenv\nget.restype = ctypes.c_char_p\n"
        "print(get(b'NCCL_NVLS_ENABLE').decode())\n"
    )
    plain = {k: v for k, v in os.environ.items() if k != "NCCL_NVLS_ENABLE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=plain | given,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == f"{expected}\n", done.stderr


@needs_nccl
def test_arrays_of_the_host_do_not_touch_a_gpu() -> None:
    comm = _native.nccl_comm(0, 1, bytes(128))
    x = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(comm.all_gather(x), x[None])
    np.testing.assert_array_equal(comm.all_reduce(x), x)
    assert comm.broadcast(b"abc") == b"abc"


def test_an_id_of_another_length_is_refused() -> None:
    with pytest.raises(errors.ConfigError, match="128 bytes, and 3 were given"):
        _native.nccl_comm(0, 1, b"abc")
