"""A checkpoint of FasterTransformer's own scripts, and ours, hold the same bytes and logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from flexq_ft import _native
from flexq_ft.converter.conversion import convert
from flexq_ft.converter.options import ConvertOptions
from tests.tools import ft_folder
from tests.tools.checkpoints import random_tensors

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 104,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 71,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT: dict[str, Any] = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 104,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 50,
    "tie_word_embeddings": True,
    "vocab_size": 71,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(params=["llama2", "opt"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The same model as FT's scripts and as our converter write it, each at tp 1 and 2."""
    style: ft_folder.Style = request.param
    config = OPT if style == "opt" else LLAMA
    tensors = random_tensors(config["model_type"], config)
    source = tmp_path / "source"
    source.mkdir()
    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(config))
    for tp in (1, 2):
        ft_folder.write_ft_folder(tmp_path / "ft", tensors, config, style=style, tp=tp)
    convert(source, tmp_path / "ours", ConvertOptions(scheme="fp16", tp=(1, 2)))
    return tmp_path / "ft", tmp_path / "ours"


def logits(folder: Path, **options: Any) -> NDArray[np.float32]:
    return _native.Engine(str(folder), threads=1, **options).forward(IDS)


@pytest.mark.parametrize("tp", [1, 2])
def test_float_files_are_the_same_bytes(both: tuple[Path, Path], tp: int) -> None:
    theirs, ours = (folder / f"{tp}-gpu" for folder in both)
    names = {path.name for path in theirs.glob("*.bin")}
    tied_copy = {"model.lm_head.weight.bin"} - {path.name for path in ours.glob("*.bin")}
    assert {path.name for path in ours.glob("*.bin")} == names - tied_copy
    for name in sorted(names - tied_copy):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


@pytest.mark.parametrize("scheme", ["fp16", "w8a16", "w8a8"])
def test_logits_are_the_same_whoever_wrote_the_files(both: tuple[Path, Path], scheme: str) -> None:
    theirs, ours = (folder / "1-gpu" for folder in both)
    assert np.array_equal(
        logits(theirs, scheme=scheme, dtype="fp32"), logits(ours, scheme=scheme, dtype="fp32")
    )
