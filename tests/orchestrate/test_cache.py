"""flexq-ft cache: what the cache of converted models holds, and what may be removed of it."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexq_ft.errors import FlexQFtError
from flexq_ft.orchestrate import model_cache
from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.models import AS_IT_IS, FoundModel, Preparation, find_model
from tests.orchestrate.schemas import validate

pytest.importorskip("transformers")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tools.checkpoints import make_checkpoint

    folder = tmp_path_factory.mktemp("hf") / "tiny.model"
    return make_checkpoint(folder, hidden=128, heads=2, inter=128, layers=1, tokenizer=False)


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "hf" / "tiny"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def find(
    model: Path,
    root: Path,
    *,
    scheme: str = "w6ax",
    tp: int = 1,
    lm_head: str | None = None,
    preparation: Preparation = AS_IT_IS,
    progress: Any = None,
) -> FoundModel:
    """As a run of such a command line converts, or finds, the model."""
    return find_model(
        model,
        tensor_parallel_size=tp,
        scheme=scheme,
        policy=None,
        dtype=None,
        lm_head=lm_head,
        cache_dir=root,
        notify=lambda text: None,
        progress=progress,
        preparation=preparation,
    )


def converted(model: Path, root: Path, **options: Any) -> Path:
    """The entry that `find` makes."""
    return find(model, root, **options).folder.parent


def listed(root: Path, capsys: Capture) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run_cli(["cache", "ls", "--cache-dir", str(root), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    validate(document, "cache-ls.json")
    entries: list[dict[str, Any]] = document["results"]["entries"]
    assert document["results"]["total_bytes"] == sum(entry["total_bytes"] for entry in entries)
    return entries


def removed(root: Path, *words: str, capsys: Capture, code: int = 0) -> dict[str, Any]:
    """The results of rm WORDS, without a question."""
    capsys.readouterr()
    assert run_cli(["cache", "rm", *words, "--yes", "--cache-dir", str(root), "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    validate(document, "cache-rm.json")
    results: dict[str, Any] = document["results"]
    return results


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fake_entry(root: Path, name: str, files: dict[str, str]) -> Path:
    for file, text in files.items():
        (root / name / file).parent.mkdir(parents=True, exist_ok=True)
        (root / name / file).write_text(text)
    return root / name


class Stopped:
    """Progress that interrupts a conversion at its second tensor."""

    def start(self, **_: Any) -> None:
        self._done = 0

    def advance(self, **_: Any) -> None:
        self._done += 1
        if self._done == 2:
            raise KeyboardInterrupt

    def finish(self) -> None:
        pass


class Waiting:
    """Progress whose conversion stands still until it is let go."""

    def __init__(self) -> None:
        self.stands, self.go = threading.Event(), threading.Event()

    def start(self, **_: Any) -> None:
        pass

    def advance(self, **_: Any) -> None:
        self.stands.set()
        assert self.go.wait(60)

    def finish(self) -> None:
        pass


def interrupted(model: Path, root: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        converted(model, root, progress=Stopped())
    (entry,) = (path for path in root.iterdir() if path.is_dir())
    return entry


# what is listed


def test_entries_say_what_they_were_made_of_and_how(
    source: Path, root: Path, capsys: Capture
) -> None:
    plain = converted(source, root, scheme="fp16")
    turned = converted(
        source,
        root,
        lm_head="w8",
        preparation=Preparation(rotate=True, rounding="scale-search"),
    )
    assert converted(source, root, scheme="fp16", tp=2) == plain
    rows = {row["path"]: row for row in listed(root, capsys)}
    assert rows.keys() == {str(plain), str(turned)}
    for path, row in rows.items():
        assert row["total_bytes"] == bytes_of(Path(path)) and path.endswith(row["id"])
        assert (row["source"], row["source_state"]) == (str(source), "unchanged")
        assert row["state"] == "complete" and row["in_use"] is False
    assert rows[str(plain)]["tp"] == [1, 2]
    assert rows[str(turned)]["tp"] == [1]
    assert rows[str(plain)]["recorded"]["scheme"] == "fp16"
    recorded = {"rotated": True, "smoothed": False, "rounding": "scale-search", "lm_head": "w8"}
    assert rows[str(turned)]["recorded"] == {
        **recorded, "name": "tiny", "scheme": "w6ax", "dtype": "fp16", "policy": "flexq"
    }  # fmt: skip
    assert run_cli(["cache", "ls", "--cache-dir", str(root)]) == 0
    out = capsys.readouterr().out
    assert "w6ax in fp16, rotated, scale-search, lm_head in w8" in out and "1, 2" in out
    assert out.splitlines()[-1].startswith("2 converted models, ")
    assert out.splitlines()[-1].endswith(f"MB in {root}")


def test_the_last_used_is_first(source: Path, root: Path, capsys: Capture) -> None:
    paths = [converted(source, root, scheme=scheme) for scheme in ("fp16", "w8a16")]
    for age, path in zip((500_000, 900_000), paths, strict=True):
        for file in (path, path / "source.json"):
            os.utime(file, (time.time() - age,) * 2)
    assert [row["path"] for row in listed(root, capsys)] == [str(path) for path in paths]
    assert converted(source, root, scheme="w8a16") == paths[1]  # used again
    assert [row["path"] for row in listed(root, capsys)] == [str(path) for path in paths[::-1]]


@pytest.mark.parametrize("is_there", [False, True])
def test_an_empty_cache_says_where_it_looked(root: Path, capsys: Capture, is_there: bool) -> None:
    if is_there:
        root.mkdir()
    assert run_cli(["cache", "ls", "--cache-dir", str(root)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"no converted models in {root}")
    assert ("no such folder" in out) is not is_there
    assert listed(root, capsys) == []
    assert removed(root, "--all", capsys=capsys)["freed_bytes"] == 0
    assert root.exists() is is_there


def test_the_default_is_where_runs_convert_to(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run_cli(["cache", "ls"]) == 0
    assert str(tmp_path / "flexq-ft") in capsys.readouterr().out


def test_a_changed_source_and_a_lost_one_are_said(
    source: Path, root: Path, capsys: Capture
) -> None:
    converted(source, root)
    os.utime(source / "config.json", (1, 1))
    assert [row["source_state"] for row in listed(root, capsys)] == ["changed"]
    shutil.rmtree(source)
    assert [row["source_state"] for row in listed(root, capsys)] == ["gone"]
    run_cli(["cache", "ls", "--cache-dir", str(root)])
    assert "source gone" in capsys.readouterr().out


def test_an_entry_without_a_note_of_its_source_gets_one_when_it_is_used(
    source: Path, root: Path, capsys: Capture
) -> None:
    entry = converted(source, root)
    (entry / "source.json").unlink()
    assert [(row["model"], row["source"]) for row in listed(root, capsys)] == [("tiny", None)]
    for text in (
        "[",
        "[]",
        '{"path": 3, "files": 1}',
        '{"path": "/nowhere"}',
        '{"path": "\\u0000", "files": []}',
    ):
        (entry / "source.json").write_text(text)
        assert [row["source_state"] for row in listed(root, capsys)] == ["unknown"]
    converted(source, root)
    assert [row["source"] for row in listed(root, capsys)] == [str(source)]


def test_a_gguf_file_that_is_a_link_keeps_its_name(
    tmp_path: Path, root: Path, capsys: Capture
) -> None:
    blob = tmp_path / "blobs" / "0123"
    blob.parent.mkdir()
    blob.write_bytes(b"GGUF")
    link = tmp_path / "model.gguf"
    link.symlink_to(blob)
    entry = fake_entry(root, f"0123-{1:016x}", {"1-gpu.partial/journal.jsonl": ""})
    model_cache.Use(entry, link)
    (row,) = listed(root, capsys)
    assert (row["source"], row["source_state"]) == (str(link), "unchanged")


def test_an_interrupted_conversion_is_incomplete_and_described_by_its_journal(
    source: Path, root: Path, capsys: Capture
) -> None:
    entry = interrupted(source, root)
    (row,) = listed(root, capsys)
    assert (row["state"], row["tp"], row["in_use"]) == ("incomplete", [], False)
    assert row["model"] == "tiny" and row["recorded"]["scheme"] == "w6ax"
    assert row["total_bytes"] == bytes_of(entry) > 0
    run_cli(["cache", "ls", "--cache-dir", str(root)])
    assert "incomplete" in capsys.readouterr().out


@pytest.mark.parametrize(
    "manifest", [None, "", "[" * 100_000, "[1]", '{"schema": "flexq-ft/manifest/9"}']
)
def test_a_broken_manifest_is_a_faulty_entry(
    root: Path, capsys: Capture, manifest: str | None
) -> None:
    files = {"1-gpu/model.bin": "x"} | ({"1-gpu/manifest.json": manifest} if manifest else {})
    fake_entry(root, f"a-{1:016x}", files)
    (row,) = listed(root, capsys)
    assert (row["state"], row["recorded"], row["tp"]) == ("faulty", None, [])


def test_a_whole_folder_beside_a_faulty_and_a_begun_one_counts(
    source: Path, root: Path, capsys: Capture
) -> None:
    entry = converted(source, root)
    fake_entry(root, entry.name, {"2-gpu/x": "", "4-gpu.partial/journal.jsonl": ""})
    (row,) = listed(root, capsys)
    assert (row["state"], row["tp"]) == ("complete", [1])
    run_cli(["cache", "ls", "--cache-dir", str(root)])
    assert "4-gpu.partial is incomplete; 2-gpu is faulty" in capsys.readouterr().out
    assert removed(root, "--incomplete", capsys=capsys)["removed"] == []


# what is removed


def test_an_id_a_path_and_a_name_choose(source: Path, root: Path, capsys: Capture) -> None:
    def paths(*words: str) -> set[str]:
        rows = removed(root, *words, "--dry-run", capsys=capsys)["removed"]
        return {row["path"] for row in rows}

    a, b = (str(converted(source, root, scheme=scheme)) for scheme in ("fp16", "w8a16"))
    assert paths(a[-16:]) == paths(a[-16:-8]) == paths(Path(a).name) == {a}
    assert paths(str(source)) == paths("tiny") == paths(a[-16:], b[-16:]) == {a, b}
    assert paths(os.path.relpath(source)) == {a, b}
    size = bytes_of(Path(a))
    results = removed(root, a[-16:-8], capsys=capsys)
    assert results["freed_bytes"] == size and not Path(a).exists() and Path(b).exists()
    assert {path.name for path in root.iterdir()} == {Path(b).name, Path(b).name + ".lock"}
    assert str(converted(source, root, scheme="fp16")) == a


def test_an_unknown_id_names_the_nearest(root: Path, capsys: Capture) -> None:
    entry = fake_entry(root, "tiny-0123456789abcdef", {"1-gpu/x": "x"})
    for given, close in (("01234568", "01234567"), ("tinny", "tiny")):
        assert run_cli(["cache", "rm", given, "--yes", "--cache-dir", str(root)]) == 2
        err = capsys.readouterr().err
        assert f"'{given}' (did you mean '{close}'?)" in err
    assert entry.is_dir()
    assert run_cli(["cache", "rm", "x", "--cache-dir", str(root / "absent")]) == 2
    assert f"no converted models in {root / 'absent'}" in capsys.readouterr().err


def test_an_id_of_several_entries_is_refused_with_their_names(root: Path, capsys: Capture) -> None:
    names = ["a-0123456789abcdef", "b-0123456789abcdef", "c-0123aaaaaaaaaaaa"]
    for name in names:
        fake_entry(root, name, {"1-gpu/x": "x"})
    assert run_cli(["cache", "rm", "0123", "--yes", "--cache-dir", str(root)]) == 2
    assert ", ".join(names) in capsys.readouterr().err
    assert len(removed(root, names[1], capsys=capsys)["removed"]) == 1
    assert not (root / names[1]).exists() and (root / names[0]).exists()


@pytest.mark.parametrize("words", [[], ["x", "--all"], ["--older-than", "30 days"]])
def test_a_choice_must_be_made_once(root: Path, capsys: Capture, words: list[str]) -> None:
    assert run_cli(["cache", "rm", *words, "--cache-dir", str(root)]) == 2
    assert "Try:   flexq-ft cache rm --help" in capsys.readouterr().err


def test_age_and_completeness_choose(source: Path, root: Path, capsys: Capture) -> None:
    begun = interrupted(source, root)
    for name, days in (("old", 40), ("new", 2)):
        entry = fake_entry(root, f"{name}-{days:016x}", {"1-gpu/manifest.json": "{}"})
        os.utime(entry, (time.time() - days * 86400,) * 2)
    whole = converted(source, root, scheme="fp16")

    def names(*words: str) -> set[str]:
        rows = removed(root, *words, "--dry-run", capsys=capsys)["removed"]
        return {Path(row["path"]).name.split("-")[0] for row in rows}

    assert names("--older-than", "30d") == {"old"}
    assert names("--older-than", "24h") == {"old", "new"}
    assert names("--older-than", "4w", "tiny") == set()
    assert names("--all") == {"old", "new", "tiny"}
    removed(root, "--incomplete", capsys=capsys)
    assert whole.is_dir() and not begun.exists()


def test_a_dry_run_removes_nothing_and_asks_nothing(root: Path, capsys: Capture) -> None:
    entry = fake_entry(root, f"a-{1:016x}", {"1-gpu/x": "x" * 3_000_000})
    assert run_cli(["cache", "rm", "--all", "--dry-run", "--cache-dir", str(root)]) == 0
    assert capsys.readouterr().out == (
        f"would remove {entry.name} (3.0 MB)\n3.0 MB would be freed\n"
    )
    assert entry.is_dir()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "code", "is_left"), [("y\n", 0, False), ("n\n", 0, True), ("", 130, True)]
)
def test_a_terminal_is_asked(
    root: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    code: int,
    is_left: bool,
) -> None:
    entry = fake_entry(root, f"a-{1:016x}", {"1-gpu/x": "x"})
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert run_cli(["cache", "rm", "--all", "--cache-dir", str(root)]) == code
    captured = capsys.readouterr()
    assert "Remove 1 converted model, 0.0 MB? [y/N]" in captured.err
    assert "Remove" not in captured.out and entry.exists() is is_left


def test_without_a_terminal_it_is_refused(
    root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = fake_entry(root, f"a-{1:016x}", {"1-gpu/x": "x"})
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert run_cli(["cache", "rm", "--all", "--cache-dir", str(root)]) == 2
    assert "--yes" in capsys.readouterr().err and entry.is_dir()


# what is never removed


def test_only_entries_are_removed(root: Path, tmp_path: Path, capsys: Capture) -> None:
    precious = fake_entry(tmp_path, "precious", {"1-gpu/keep": "x", "keep": "x"})
    entry = fake_entry(root, f"a-{1:016x}", {"1-gpu/x": "x"})
    (entry / "1-gpu" / "link").symlink_to(precious)
    mixed = fake_entry(root, f"mixed-{2:016x}", {"1-gpu/x": "x", "notes.txt": "x"})
    linked = fake_entry(root, f"linked-{3:016x}", {"2-gpu/x": "x"})
    (linked / "1-gpu").symlink_to(precious / "1-gpu")
    fake_entry(root, f"photos-{4:016x}", {"a.jpg": "x"})
    fake_entry(root, "other", {"1-gpu/x": "x"})
    (root / "file").write_text("x")
    (root / f"outside-{5:016x}").symlink_to(precious)
    assert run_cli(["cache", "ls", "--cache-dir", str(root)]) == 0
    strangers = f"file, other, outside-{5:016x}, photos-{4:016x}"
    captured = capsys.readouterr()
    assert captured.err.strip().endswith(strangers) and "wrote notes.txt in it" in captured.out
    dry = removed(root, "--all", "--dry-run", capsys=capsys, code=1)
    assert [row["path"] for row in dry["removed"]] == [str(entry)] and len(dry["left"]) == 2
    results = removed(root, "--all", capsys=capsys, code=1)
    assert [row["path"] for row in results["removed"]] == [str(entry)]
    assert {Path(row["path"]).name: row["why"] for row in results["left"]} == {
        mixed.name: "no conversion wrote notes.txt in it",
        linked.name: "no conversion wrote 1-gpu in it",
    }
    assert not entry.exists() and sorted(p.name for p in precious.rglob("keep")) == ["keep"] * 2
    assert (mixed / "1-gpu" / "x").is_file() and (linked / "2-gpu" / "x").is_file()
    for name in (f"photos-{4:016x}/a.jpg", "other/1-gpu/x", "file", f"outside-{5:016x}"):
        assert (root / name).exists()


def test_what_is_no_checkpoint_leaves_nothing_in_the_cache(source: Path, root: Path) -> None:
    (source / "config.json").write_text("{")
    for model in (source, source / "config.json"):
        with pytest.raises(FlexQFtError):
            find(model, root)
    assert list(root.iterdir()) == []


def test_a_lock_that_is_a_link_is_not_followed(root: Path, tmp_path: Path, capsys: Capture) -> None:
    entry = fake_entry(root, f"a-{1:016x}", {"1-gpu/x": "x"})
    (tmp_path / "precious").write_text("x")
    (root / f"{entry.name}.lock").symlink_to(tmp_path / "precious")
    assert len(removed(root, "--all", capsys=capsys, code=1)["left"]) == 1
    assert entry.is_dir() and (tmp_path / "precious").read_text() == "x"


def test_a_conversion_that_runs_is_left(source: Path, root: Path, capsys: Capture) -> None:
    progress = Waiting()
    run = threading.Thread(target=converted, args=(source, root), kwargs={"progress": progress})
    run.start()
    try:
        assert progress.stands.wait(60)
        (row,) = listed(root, capsys)
        assert (row["state"], row["in_use"]) == ("incomplete", True)
        results = removed(root, "--all", capsys=capsys, code=1)
        assert results["removed"] == [] and "using it" in results["left"][0]["why"]
        assert run_cli(["cache", "rm", "--all", "--yes", "--cache-dir", str(root)]) == 1
        assert f"left: {Path(row['path']).name}" in capsys.readouterr().err
    finally:
        progress.go.set()
        run.join()
    (row,) = listed(root, capsys)
    assert (row["state"], row["in_use"]) == ("complete", False)
    assert len(removed(root, "--all", capsys=capsys)["removed"]) == 1


def test_a_model_that_is_being_loaded_is_left(source: Path, root: Path, capsys: Capture) -> None:
    found = find(source, root)
    entry = found.folder.parent
    assert [row["in_use"] for row in listed(root, capsys)] == [True]
    assert "using it" in model_cache.remove(entry)
    unpickled = pickle.loads(pickle.dumps(found))
    del found
    assert len(removed(root, "--all", capsys=capsys, code=1)["left"]) == 1 and entry.is_dir()
    del unpickled
    assert [row["in_use"] for row in listed(root, capsys)] == [False]
    assert len(removed(root, "--all", capsys=capsys)["removed"]) == 1


def test_a_conversion_begins_anew_after_the_removal_that_it_waited_for(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = fake_entry(root, f"a-{1:016x}", {"1-gpu/x": "x"})
    waits, ends = threading.Event(), threading.Event()
    seen = []

    def convert() -> None:
        waits.set()
        with model_cache.locked(entry):
            seen.append((entry.exists(), model_cache.is_busy(entry)))
            assert ends.wait(60)

    run = threading.Thread(target=convert)
    delete = shutil.rmtree

    def slow(path: Path) -> None:
        run.start()
        assert waits.wait(60)
        time.sleep(0.1)  # it comes to wait for the lock that is about to be removed
        delete(path)

    monkeypatch.setattr(model_cache.shutil, "rmtree", slow)
    assert model_cache.remove(entry) == ""
    try:
        for _ in range(600):
            if seen:
                break
            time.sleep(0.05)
        assert seen == [(False, True)]
    finally:
        ends.set()
        run.join()


@pytest.fixture
def halfway(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An entry whose removal was interrupted."""
    entry = fake_entry(root, f"a-{1:016x}", {"1-gpu/x": "x"})

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model_cache.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            model_cache.remove(entry)
    yield entry


def test_an_interrupted_removal_leaves_nothing_that_looks_complete(
    halfway: Path, root: Path, capsys: Capture
) -> None:
    assert not halfway.exists()
    (row,) = listed(root, capsys)
    assert (row["state"], row["in_use"], row["tp"]) == ("incomplete", False, [])
    assert len(removed(root, "--incomplete", capsys=capsys)["removed"]) == 1
    assert list(root.iterdir()) == []


def test_an_entry_made_again_after_an_interrupted_removal_goes_with_its_rest(
    halfway: Path, root: Path, capsys: Capture
) -> None:
    fake_entry(root, halfway.name, {"1-gpu/x": "x"})
    assert len(listed(root, capsys)) == 2
    removed(root, "--all", capsys=capsys)
    assert list(root.iterdir()) == []


def test_a_folder_that_may_not_be_changed_is_said(
    root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = fake_entry(root, f"a-{1:016x}", {"1-gpu/x": "x"})

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "rename", refuse)
    (left,) = removed(root, "--all", capsys=capsys, code=1)["left"]
    assert left["why"] == f"{entry}: Permission denied" and entry.is_dir()


def test_a_folder_that_may_not_be_read_is_an_error_that_names_it(
    root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir()

    def refuse(self: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    for words in (["ls"], ["rm", "--all"]):
        assert run_cli(["cache", *words, "--cache-dir", str(root)]) == 2
        err = capsys.readouterr().err
        assert f"the cache {root} cannot be read" in err and "Permission denied" in err


def test_an_entry_that_may_not_be_read_is_faulty_and_left(
    root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut = fake_entry(root, f"a-{1:016x}", {"1-gpu/x": "x"})
    fake_entry(root, f"b-{2:016x}", {"1-gpu/x": "x"})
    read = Path.iterdir

    def refuse(self: Path) -> Iterator[Path]:
        if self == shut:
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert {row["state"] for row in listed(root, capsys)} == {"faulty"}
    results = removed(root, "--all", capsys=capsys, code=1)
    assert len(results["removed"]) == 1
    assert results["left"] == [{"path": str(shut), "why": f"{shut}: Permission denied"}]


def test_a_cache_that_can_only_be_read_still_serves(
    source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = converted(source, root)

    def refuse(file: Path, *_: Any) -> int:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(model_cache.os, "open", refuse)
    assert converted(source, root) == entry


def test_markdown_is_saved(root: Path, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("ls.md", "rm.md", "none.md")]
    options = ["--cache-dir", str(root), "--save"]
    fake_entry(root, "a|b-0123456789abcdef", {"1-gpu/x": "x"})
    assert run_cli(["cache", "ls", *options, files[0]]) == 0
    assert run_cli(["cache", "rm", "--all", "--yes", *options, files[1]]) == 0
    assert run_cli(["cache", "ls", *options, files[2]]) == 0
    ls, rm, none = (Path(file).read_text() for file in files)
    assert "| 01234567 | a\\|b | - | - | 0.0 MB |" in ls and "1 converted model, 0.0 MB in" in ls
    assert rm == "- removed a|b-0123456789abcdef (0.0 MB)\n- 0.0 MB freed\n"
    assert none == f"no converted models in {root}\n"


def test_ids_are_completed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import click
    from click.shell_completion import ShellComplete

    from flexq_ft.orchestrate.cli.main import cli

    fake_entry(root, "tiny-0123456789abcdef", {"1-gpu/x": "x"})
    fake_entry(root, "other-fedcba9876543210", {"1-gpu/x": "x"})
    completion = ShellComplete(cli, {}, "flexq-ft", "_FLEXQ_FT_COMPLETE")
    words = ["cache", "rm", "--cache-dir", str(root)]
    assert isinstance(cli, click.Group)
    assert [item.value for item in completion.get_completions(words, "01")] == ["01234567"]


def test_a_snapshot_of_a_hugging_face_cache_goes_by_its_repository(
    source: Path, root: Path, tmp_path: Path, capsys: Capture
) -> None:
    snapshot = tmp_path / "models--org--small-llama" / "snapshots" / "0a1b2c"
    shutil.copytree(source, snapshot)
    entry = converted(snapshot, root)
    (row,) = listed(root, capsys)
    assert (row["model"], row["source"]) == ("small-llama", str(snapshot))
    (gone,) = removed(root, "small-llama", capsys=capsys)["removed"]
    assert gone["path"] == str(entry)
