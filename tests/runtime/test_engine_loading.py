"""How an engine gets its weights: progress, and weights without files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.errors import ConfigError, DeviceError, WeightError
from tests.runtime.conftest import devices
from tests.tools.hf_models import make_model, write_folder

SHAPE = """
[llama]
model_name = shape
head_num = 4
kv_head_num = 2
size_per_head = 32
inter_size = 256
num_layer = 3
layernorm_eps = 1e-5
vocab_size = 320
max_pos_seq_len = 256
start_id = 1
end_id = 2
weight_data_type = fp16
"""


@pytest.fixture
def shape(tmp_path: Path) -> str:
    path = tmp_path / "shape.ini"
    path.write_text(SHAPE)
    return str(path)


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    folder = write_folder(make_model("llama_mha"), tmp_path)
    seen: list[tuple[int, int]] = []
    _native.Engine(str(folder), progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(f.stat().st_size for f in folder.glob("*.bin"))


def test_what_progress_raises_ends_the_load(tmp_path: Path) -> None:
    folder = write_folder(make_model("llama_mha"), tmp_path)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _native.Engine(str(folder), progress=stop)


@pytest.mark.parametrize("where", devices())
@pytest.mark.parametrize("scheme", ["fp16", "w8a16", "w8a8", "w6ax"])
def test_synthetic_weights_of_a_shape(shape: str, scheme: str, where: str) -> None:
    engine = _native.Engine(
        shape, scheme=scheme, dtype="fp16", synthetic_weights=True, device=where
    )
    assert engine.config.num_layers == 3
    logits = engine.forward(list(range(3, 40)))
    assert np.isfinite(logits).all()
    assert 0.5 < logits.std() < 2.0
    slot = engine.admit([5, 6, 7], max_tokens=4, ignore_eos=True)
    tokens = [output[1] for _ in range(4) for output in engine.step()]
    engine.release(slot)
    assert len(tokens) == 4


@pytest.mark.parametrize("scheme", ["fp16", "w8a16", "w8a8"])
def test_synthetic_weights_may_take_the_place_of_files(tmp_path: Path, scheme: str) -> None:
    folder = write_folder(make_model("opt"), tmp_path)
    for file in folder.glob("*.bin"):
        file.unlink()
    with pytest.raises(WeightError):
        _native.Engine(str(folder), scheme=scheme)
    engine = _native.Engine(str(folder), scheme=scheme, synthetic_weights=True)
    assert np.isfinite(engine.forward([5, 6, 7])).all()


def test_a_shape_has_no_weights_to_read(shape: str) -> None:
    with pytest.raises(ConfigError, match=r"shape\.ini"):
        _native.Engine(shape)


def test_what_a_gpu_does_not_do(tmp_path: Path) -> None:
    folder = str(write_folder(make_model("llama_mha"), tmp_path))
    with pytest.raises(ConfigError, match="not in fp32") as raised:
        _native.Engine(folder, device="cuda")
    assert "no dtype was given" in raised.value.cause
    with pytest.raises(ConfigError, match="not in fp32"):
        _native.Engine(folder, device="cuda", dtype="fp32")
    if _native.gpus():
        with pytest.raises(ConfigError, match="GPU 99"):
            _native.Engine(folder, device="cuda", dtype="fp16", gpu=99)
    else:
        with pytest.raises(DeviceError, match="no GPU"):
            _native.Engine(folder, device="cuda", dtype="fp16")
