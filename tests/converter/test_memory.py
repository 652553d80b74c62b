"""Peak memory is a few tensors' working set, whatever the size of the model."""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from flexq_ft.converter import ConvertOptions, plan, verify
from tests.tools.checkpoints import write_large_llama

# Not getrusage: a child's ru_maxrss starts at what its parent held when it was forked.
SCRIPT = """
import re, sys
from pathlib import Path
from flexq_ft.converter import ConvertOptions, convert
report = convert(sys.argv[1], sys.argv[2], ConvertOptions(scheme=sys.argv[3]))
status = Path("/proc/self/status").read_text()
peak = 1024 * int(re.search(r"VmHWM:\\s*([0-9]+) kB", status)[1])
print(peak, report.folders[0].bits_per_weight)
"""


def convert_apart(source: Path, out: Path, scheme: str) -> tuple[int, float]:
    """(peak resident bytes of a process that converts, bits per weight)."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, source, out, scheme],
        check=True,
        capture_output=True,
        text=True,
    )
    peak, bits = done.stdout.split()
    return int(peak), float(bits)


@pytest.mark.parametrize("scheme", ["fp16", "w8a16", "w6ax"])
def test_memory_does_not_follow_the_number_of_layers(tmp_path: Path, scheme: str) -> None:
    size = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16}
    size |= {"num_key_value_heads": 4, "vocab_size": 1000}
    peaks = []
    for layers in (1, 12):
        source = write_large_llama(tmp_path / f"s{layers}", num_hidden_layers=layers, **size)
        peaks.append(convert_apart(source, tmp_path / f"o{layers}", scheme)[0])
        assert peaks[-1] <= plan(source, ConvertOptions(scheme=scheme)).peak_bytes
    assert peaks[1] - peaks[0] < 24 << 20  # twelve layers of bf16 are 270 MB
    assert verify(tmp_path / "o12/1-gpu") == []


@pytest.mark.slow
def test_a_model_of_1_1_billion_weights(tmp_path: Path, measured: Callable[[str], None]) -> None:
    source = write_large_llama(tmp_path / "source", shard_bytes=1_000_000_000)
    started = time.monotonic()
    peak, bits = convert_apart(source, tmp_path / "out", "w6ax")
    seconds = time.monotonic() - started
    measured(f"1.1B bf16 to w6ax: peak {peak / 1e6:.0f} MB, {bits:.4f} bits, {seconds:.1f} s")
    assert peak < 600 << 20
    assert bits == pytest.approx(6.125, rel=0.01)
    manifest = json.loads((tmp_path / "out/1-gpu/manifest.json").read_text(encoding="utf-8"))
    assert len(manifest["files"]) == 3 + 22 * (2 + 2 * 5)

    random = Random()
    for _ in range(3):
        moment = random.uniform(0.2, 0.8) * seconds
        if is_killed_after(moment, source, tmp_path / "again"):
            # What looks complete is: the kill may come when only the report was missing.
            made = tmp_path / "again/1-gpu"
            assert not made.exists() or verify(made) == [], moment
    convert_apart(source, tmp_path / "again", "w6ax")
    names = sorted(path.name for path in (tmp_path / "out/1-gpu").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again/1-gpu").iterdir())
    pairs = (((tmp_path / out / "1-gpu" / name) for out in ("out", "again")) for name in names)
    assert all(filecmp.cmp(one, other, shallow=False) for one, other in pairs)


def is_killed_after(seconds: float, source: Path, out: Path) -> bool:
    """False if the conversion was done before."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, source, out, "w6ax"])
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False
