"""pytorch_model.bin: the same result as safetensors, and no code from a pickle."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from flexq_ft.converter import ConvertOptions, convert
from flexq_ft.errors import ConfigError, WeightError

torch = pytest.importorskip("torch")


def as_pickles(folder: Path, *, shards: int, legacy: bool = False) -> None:
    """Rewrites a checkpoint's safetensors as pytorch_model.bin, in one file or in shards."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"pytorch_model-{shard}.bin" if shards > 1 else "pytorch_model.bin"
        part = {name: tensors[name] for name in names[shard::shards]}
        torch.save(part, folder / file, _use_new_zipfile_serialization=not legacy)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = json.dumps({"weight_map": weight_map})
        (folder / "pytorch_model.bin.index.json").write_text(index, encoding="utf-8")


@pytest.mark.parametrize(("name", "shards"), [("llama-mha", 1), ("mistral", 2), ("opt", 3)])
def test_same_weights_as_from_safetensors(
    checkpoint: Callable[[str], Path],
    own_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    shards: int,
) -> None:
    own = own_checkpoint(name)
    as_pickles(own, shards=shards, legacy=name == "opt")
    convert(checkpoint(name), tmp_path / "a", ConvertOptions(scheme="w6ax"))
    convert(own, tmp_path / "b", ConvertOptions(scheme="w6ax"))
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / s).rglob("*.bin")} for s in "ab")
    assert a == b
    manifest = json.loads((tmp_path / "b/1-gpu/manifest.json").read_text(encoding="utf-8"))
    assert manifest["source"]["kind"] == "pytorch"


class Surprise:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (Path("surprise.txt"), "ran")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_pickle_does_not_run(
    own_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = own_checkpoint("qwen2")
    as_pickles(source, shards=1)
    monkeypatch.chdir(tmp_path)
    with (source / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"x": Surprise()}, file)
    with pytest.raises(WeightError, match="cannot be read as PyTorch weights"):
        convert(source, tmp_path / "out", ConvertOptions())
    assert not (tmp_path / "surprise.txt").exists()
    assert not (tmp_path / "out").exists()


def test_without_torch_the_way_out_is_named(
    own_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = own_checkpoint("qwen2")
    as_pickles(source, shards=1)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="needs torch to be read") as caught:
        convert(source, tmp_path / "out", ConvertOptions())
    assert "pip install 'flexq-ft[torch]'" in caught.value.hint
