"""Determinism, kills at any moment, repair, and what is never overwritten."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event

import pytest

from flexq_ft.converter import ConvertOptions, conversion, convert, verify
from flexq_ft.converter.architectures import Unit
from flexq_ft.converter.report import Quality
from flexq_ft.converter.schemes.blocks import Outputs
from flexq_ft.converter.schemes.int6_codec import Int6Codec
from flexq_ft.converter.source import Source
from flexq_ft.errors import ConfigError, WeightError
from tests.converter.conftest import folder_bytes
from tests.tools.checkpoints import write_large_llama

FOLDERS = ("1-gpu", "2-gpu")
OPTIONS = ConvertOptions(scheme="w6ax", tp=(1, 2))
Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough tensors that a kill falls among them."""
    size = {"hidden_size": 512, "num_hidden_layers": 10, "intermediate_size": 1408}
    size |= {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 2000}
    folder = tmp_path_factory.mktemp("resume") / "source"
    return write_large_llama(folder, shard_bytes=20_000_000, **size)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Files of an uninterrupted conversion."""
    out = tmp_path_factory.mktemp("whole")
    convert(source, out, OPTIONS)
    return {name: folder_bytes(out / name) for name in FOLDERS}


def test_the_same_input_gives_the_same_bytes(
    source: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    convert(source, tmp_path, ConvertOptions(scheme="w6ax", tp=(2, 1), jobs=3))
    assert {path.name for path in tmp_path.iterdir()} == set(FOLDERS)
    for name in FOLDERS:
        assert folder_bytes(tmp_path / name) == whole[name]


@pytest.mark.parametrize("jobs", [1, 3])
def test_so_many_tensors_are_worked_on_at_a_time(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    at_work: list[Unit] = []
    most: list[int] = []
    encode = Int6Codec.encode

    def counted(self: Int6Codec, unit: Unit, source: Source, outputs: Outputs) -> Quality | None:
        at_work.append(unit)
        most.append(len(at_work))
        time.sleep(0.02)  # until all that may begin have begun
        try:
            return encode(self, unit, source, outputs)
        finally:
            at_work.remove(unit)

    monkeypatch.setattr(Int6Codec, "encode", counted)
    convert(checkpoint("llama-gqa"), tmp_path, ConvertOptions(scheme="w6ax", jobs=jobs))
    assert max(most) == jobs


def kill_after(source: Path, out: Path, units: int, pause: float) -> bool:
    """Kills a conversion soon after it has finished that many units; False if it ended before."""
    script = (
        "import sys\n"
        "from flexq_ft.converter import ConvertOptions, convert\n"
        "convert(sys.argv[1], sys.argv[2], ConvertOptions(scheme='w6ax', tp=(1, 2)))\n"
    )
    journal = out / "2-gpu.partial" / "journal.jsonl"
    process = subprocess.Popen([sys.executable, "-c", script, source, out])
    while process.poll() is None:
        if journal.is_file() and journal.read_bytes().count(b"\n") > units:
            time.sleep(pause)
            process.kill()
            break
        time.sleep(0.0005)
    return process.wait() == -signal.SIGKILL


def test_kills_at_random_moments_end_in_the_same_bytes(
    source: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    moments = random.Random(20)
    killed = units = 0
    for _ in range(5):
        units += moments.randrange(1, 12)
        killed += kill_after(source, tmp_path, units, moments.uniform(0.0, 0.01))
        for name in FOLDERS:  # what looks complete, is
            if (tmp_path / name).exists():
                assert folder_bytes(tmp_path / name) == whole[name]
    convert(source, tmp_path, OPTIONS)
    assert {path.name for path in tmp_path.iterdir()} == set(FOLDERS)
    assert {name: folder_bytes(tmp_path / name) for name in FOLDERS} == whole
    assert killed >= 1


class StopAfter:
    """Ends a conversion after some tensors, as Ctrl-C does."""

    def __init__(self, tensors: int) -> None:
        self.left = tensors
        self.total = 0

    def start(self, *, task: str, total_bytes: int, total_tensors: int) -> None:
        self.total = total_tensors

    def advance(self, *, tensor: str, source_bytes: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def finish(self) -> None:
        pass


def test_finished_tensors_are_kept_and_damaged_ones_made_again(
    source: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path, OPTIONS, progress=StopAfter(40))
    partial = tmp_path / "1-gpu.partial"
    packed = sorted(partial.glob("*.int6.0.bin"))
    damaged, removed, untouched = packed[0], packed[1], packed[2]
    damaged.write_bytes(damaged.read_bytes()[:-7])
    removed.unlink()
    (partial / "model.half.bin").write_bytes(b"half")
    inode = untouched.stat().st_ino

    sink = StopAfter(-1)
    report = convert(source, tmp_path, OPTIONS, progress=sink)
    assert [folder.action for folder in report.folders] == ["resumed", "resumed"]
    assert 0 < sink.total <= len(report.plan.units) - 40 + 2
    assert (tmp_path / "1-gpu" / untouched.name).stat().st_ino == inode
    assert {name: folder_bytes(tmp_path / name) for name in FOLDERS} == whole


def test_an_interrupt_does_not_wait_for_the_hash_of_the_source(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large model it takes minutes."""
    hashing = conversion.hash_files
    ended: list[bool] = []

    def late(paths: Iterable[Path], *, over: Event) -> str:
        ended.append(over.wait(60))
        return hashing(paths, over=over)

    monkeypatch.setattr(conversion, "hash_files", late)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path, OPTIONS, progress=StopAfter(20))
    assert ended == [True]
    over = Event()
    over.set()
    with pytest.raises(CancelledError):
        hashing([source / "config.json"], over=over)


def test_a_full_disk_is_said_and_the_conversion_goes_on(
    source: Path,
    whole: dict[str, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(StopAfter):
        def advance(self, *, tensor: str, source_bytes: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ConfigError, match=f"the disk of {tmp_path} is full") as caught:
        convert(source, tmp_path, OPTIONS, progress=Full(40))
    assert "goes on where it stopped" in caught.value.hint
    assert convert(source, tmp_path, OPTIONS).folders[0].action == "resumed"
    assert {name: folder_bytes(tmp_path / name) for name in FOLDERS} == whole


def test_a_folder_that_cannot_be_made_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/out/1-gpu\.partial cannot be written") as caught:
        convert(source, tmp_path / "file/out", OPTIONS)
    assert caught.value.cause == "Not a directory"


def test_other_options_do_not_resume(source: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "a", OPTIONS, progress=StopAfter(20))
    sink = StopAfter(-1)
    report = convert(source, tmp_path / "a", ConvertOptions(scheme="w8a16"), progress=sink)
    assert report.folders[0].action == "written"
    assert sink.total == len(report.plan.units)
    assert verify(tmp_path / "a/1-gpu") == []


def test_a_complete_folder_is_verified_and_repaired(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("llama-gqa")
    assert convert(source, tmp_path, OPTIONS).folders[0].action == "written"
    before = folder_bytes(tmp_path / "1-gpu")
    again = convert(source, tmp_path, OPTIONS)
    assert [folder.action for folder in again.folders] == ["verified", "verified"]
    assert len(again.quality) == 10

    path = tmp_path / "1-gpu/model.layers.1.mlp.down_proj.weight.int6.0.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    (tmp_path / "1-gpu/model.norm.bin").write_bytes(b"not ours")
    (tmp_path / "1-gpu/tokenizer.json").unlink()
    (tmp_path / "1-gpu/config.ini").write_text("[llama]\n", encoding="utf-8")
    assert {fault.file for fault in verify(tmp_path / "1-gpu")} == {path.name, "model.norm.bin"}

    report = convert(source, tmp_path, OPTIONS)
    assert [folder.action for folder in report.folders] == ["repaired", "verified"]
    assert folder_bytes(tmp_path / "1-gpu") == before
    assert {path.name for path in tmp_path.iterdir()} == set(FOLDERS)


def test_a_lost_quality_report_is_made_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("opt")
    convert(source, tmp_path, ConvertOptions(scheme="w8a16"))
    before = folder_bytes(tmp_path / "1-gpu")
    (tmp_path / "1-gpu/quant_report.json").write_text("{}", encoding="utf-8")
    report = convert(source, tmp_path, ConvertOptions(scheme="w8a16"))
    assert report.folders[0].action == "repaired"
    assert folder_bytes(tmp_path / "1-gpu") == before


@pytest.mark.parametrize("change", ["options", "source", "manifest"])
def test_a_folder_of_something_else_is_not_replaced(
    checkpoint: Checkpoint,
    own_checkpoint: Checkpoint,
    tmp_path: Path,
    change: str,
) -> None:
    source, out, options = own_checkpoint("qwen2"), tmp_path / "out", OPTIONS
    convert(source, out, options)
    if change == "options":
        options = ConvertOptions(scheme="w6ax", dtype="bf16")
    elif change == "source":
        path = source / "tokenizer_config.json"
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    else:
        (out / "1-gpu/manifest.json").write_text("{}", encoding="utf-8")
    before = folder_bytes(out / "1-gpu")
    with pytest.raises(ConfigError, match="is complete and came from another source") as caught:
        convert(source, out, options)
    assert "--force" in caught.value.hint
    cause = {"options": "its dtype is fp16, this conversion's is bf16", "source": "other content"}
    assert cause.get(change, "") in caught.value.cause
    assert folder_bytes(out / "1-gpu") == before
    assert not list(out.glob("*.partial"))

    forced = ConvertOptions(scheme=options.scheme, dtype=options.dtype, force=True)
    assert convert(source, out, forced).folders[0].action == "written"
    assert verify(out / "1-gpu") == []


def test_force_keeps_the_old_folder_until_the_new_one_is_done(
    checkpoint: Checkpoint, own_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(checkpoint("qwen2"), out, ConvertOptions())
    before = folder_bytes(out / "1-gpu")
    forced = ConvertOptions(scheme="w8a8", force=True)
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint("qwen2"), out, forced, progress=StopAfter(5))
    assert folder_bytes(out / "1-gpu") == before
    source = own_checkpoint("qwen2")
    (source / "config.json").unlink()
    with pytest.raises(WeightError):
        convert(source, out, forced)
    assert folder_bytes(out / "1-gpu") == before


def test_a_replacement_that_was_killed_between_its_renames(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    convert(checkpoint("qwen2"), tmp_path, ConvertOptions())
    before = folder_bytes(tmp_path / "1-gpu")
    (tmp_path / "1-gpu").rename(tmp_path / "1-gpu.old")
    report = convert(checkpoint("qwen2"), tmp_path, ConvertOptions())
    assert report.folders[0].action == "verified"
    assert folder_bytes(tmp_path / "1-gpu") == before
    assert not (tmp_path / "1-gpu.old").exists()


def test_two_conversions_do_not_write_one_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    class Second(StopAfter):
        def advance(self, *, tensor: str, source_bytes: int) -> None:
            with pytest.raises(ConfigError, match="another conversion is writing"):
                convert(checkpoint("qwen2"), tmp_path, ConvertOptions())

    convert(checkpoint("qwen2"), tmp_path, ConvertOptions(), progress=Second(-1))
    assert verify(tmp_path / "1-gpu") == []


def test_other_sizes_are_left_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    convert(checkpoint("qwen2"), tmp_path, ConvertOptions(tp=(1,)))
    inodes = {path.name: path.stat().st_ino for path in (tmp_path / "1-gpu").iterdir()}
    convert(checkpoint("qwen2"), tmp_path, ConvertOptions(scheme="w6ax", tp=(2,)))
    assert {p.name: p.stat().st_ino for p in (tmp_path / "1-gpu").iterdir()} == inodes
