"""configs/models: every shape is a model that the runtime accepts, of the known size."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flexq_ft import _native
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate import shapes
from flexq_ft.orchestrate.bench.roofline import ModelSizes

# Parameters in billions as the checkpoints on Hugging Face hold them (a tied head counts once).
KNOWN = {
    "llama-7b": 6.738, "llama-13b": 13.016, "llama-30b": 32.529, "llama-65b": 65.286,
    "llama-2-7b": 6.738, "llama-2-13b": 13.016, "llama-2-70b": 68.977, "llama-3-8b": 8.030,
    "llama-3-70b": 70.554, "opt-6.7b": 6.658, "opt-13b": 12.853, "opt-30b": 29.975,
    "opt-66b": 65.718, "smollm2-135m": 0.1345,
}  # fmt: skip


def test_no_shape_is_missing_or_unknown() -> None:
    assert shapes.shape_names() == sorted(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_sizes_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    path = shapes.find_shape(name)
    sizes = ModelSizes.of_ini(path)
    assert sizes.parameters() == pytest.approx(1e9 * KNOWN[name], rel=1e-3)
    folder = tmp_path / "1-gpu"
    folder.mkdir()
    shutil.copy(path, folder / "config.ini")
    config = _native.open_model_folder(str(folder)).config
    assert ModelSizes.of_config(config) == sizes
    assert config.name == name and config.architecture == ("opt" if "opt" in name else "llama")


def test_rope_and_end_of_the_third_generation() -> None:
    values = _native.read_ini(str(shapes.find_shape("llama-3-8b")))["llama"]
    assert float(values["rope_theta"]) == 500000 and values["end_ids"] == "128001"


def test_an_unknown_shape_names_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'llama-7b'") as caught:
        shapes.find_shape("lama-7b")
    assert all(name in caught.value.cause for name in KNOWN)


def test_installed_shapes_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs" / "models"
    folder.mkdir(parents=True)
    (folder / "only.ini").write_text("")
    monkeypatch.setattr(shapes.flexq_ft, "__file__", str(tmp_path / "__init__.py"))
    assert shapes.shape_names() == ["only"]
