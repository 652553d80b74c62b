"""Weight files that are not what they should be: one typed error that lists them, and no engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.errors import ConfigError, WeightError
from tests.tools import ft_folder
from tests.tools.checkpoints import random_tensors

CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 71,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DENSE = "model.layers.1.attention.dense.weight.0.bin"
UP = "model.layers.0.mlp.up_proj.weight.0.bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = random_tensors("llama", CONFIG)
    return ft_folder.write_ft_folder(tmp_path, tensors, CONFIG, style="llama2")


def load(folder: Path, **options: Any) -> _native.Engine:
    return _native.Engine(str(folder), **options)


def test_short_long_missing_and_renamed_files_are_listed_together(folder: Path) -> None:
    dense, up = folder / DENSE, folder / UP
    dense.write_bytes(dense.read_bytes()[:-2])
    up.rename(folder / "model.layers.0.mlp.up.weight.0.bin")
    norm = folder / "model.final_layernorm.weight.bin"
    norm.write_bytes(norm.read_bytes() + b"\0")
    with pytest.raises(WeightError, match=r"3 of 17 weight files .* nothing was loaded") as raised:
        load(folder)
    assert f"{DENSE} holds 8,190 bytes, expected 8,192" in raised.value.cause
    assert f"{UP} is missing" in raised.value.cause
    assert "model.final_layernorm.weight.bin holds 129 bytes, expected 128" in raised.value.cause
    assert raised.value.exit_code == 3
    assert raised.value.hint


def test_files_of_another_type_than_the_ini_says(folder: Path) -> None:
    """FasterTransformer reads the first half of them and goes on."""
    ini = folder / "config.ini"
    ini.write_text(ini.read_text().replace("= fp16", "= fp32"))
    with pytest.raises(WeightError, match=r"17 of 17 weight files .* do not match config\.ini"):
        load(folder)


def test_nan_is_refused_when_it_must_be_quantised(folder: Path) -> None:
    values = np.frombuffer((folder / DENSE).read_bytes(), np.float16).reshape(64, 64).copy()
    values[3, 5] = np.nan
    (folder / DENSE).write_bytes(values.tobytes())
    with pytest.raises(WeightError, match=rf"{DENSE}: the weight at \[3, 5\] is nan"):
        load(folder, scheme="w8a16")


def test_float_folder_cannot_run_as_w6ax(folder: Path) -> None:
    with pytest.raises(ConfigError, match="w6ax"):
        load(folder, scheme="w6ax")


def test_ft_int8_files_are_refused_by_name_in_w8a8_only(folder: Path) -> None:
    name = "model.layers.0.attention.query_key_value.weight.int8.0.bin"
    (folder / name).write_bytes(b"\0" * 64)
    with pytest.raises(WeightError, match="FasterTransformer's own int8 files"):
        load(folder, scheme="w8a8")
    assert load(folder, scheme="w8a16").scheme == "w8a16"
