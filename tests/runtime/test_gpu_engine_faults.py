"""On a GPU a step is launched before the last one is read: what a failed row or a refused request
leaves behind is not given to whoever has the slot next."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexq_ft import _native
from flexq_ft.errors import ConfigError, WeightError
from tests.tools.engines import generate, greedy
from tests.tools.hf_models import make_model, write_folder

pytestmark = pytest.mark.skipif(not _native.gpus(), reason="no GPU, or a build without CUDA")


@pytest.fixture
def engine(tmp_path: Path) -> _native.Engine:
    """Of three slots; token 78 makes the logits not finite."""
    model = make_model("llama_mha", intermediate_size=104)
    model.model.embed_tokens.weight.data[78] = float("inf")
    folder = str(write_folder(model, tmp_path))
    return _native.Engine(folder, device="cuda", dtype="fp16", max_batch=3)


def test_what_a_failed_step_held_back_goes_with_its_slot(engine: _native.Engine) -> None:
    expected = greedy(engine, [9, 8], 3)
    good = engine.admit([5, 6], max_tokens=3, ignore_eos=True)
    bad = engine.admit([5, 78], max_tokens=3)
    with pytest.raises(WeightError, match=f"slot {bad}"):
        engine.step()
    engine.release(bad)
    engine.release(good)
    assert greedy(engine, [9, 8], 3) == expected


def test_every_failed_row_of_a_step_is_reported(engine: _native.Engine) -> None:
    first = engine.admit([5, 78], max_tokens=3)
    good = engine.admit([5, 6], max_tokens=3, ignore_eos=True)
    second = engine.admit([6, 78], max_tokens=3)
    for slot in (first, second):
        with pytest.raises(WeightError, match=f"slot {slot}"):
            engine.step()
        engine.release(slot)
    tokens = [token for _ in range(3) for slot, token, _, _ in engine.step() if slot == good]
    engine.release(good)
    assert tokens == greedy(engine, [5, 6], 3)


def test_a_refused_request_takes_no_slot(engine: _native.Engine) -> None:
    for _ in range(4):
        with pytest.raises(ConfigError, match="a GPU takes"):
            engine.admit([5, 6], max_tokens=3, end_ids=list(range(65)))
    params = {"max_tokens": 3, "ignore_eos": True}
    assert all(len(tokens) == 3 for tokens in generate(engine, [[5, 6]] * 3, params))
