"""GGUF: values and row order against transformers' own loader, tokenizers against their origin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from flexq_ft.converter import ConvertOptions, convert, open_source
from flexq_ft.errors import WeightError
from tests.tools.checkpoints import make_checkpoint, train_tokenizer
from tests.tools.gguf_files import SAMPLES, write_gguf

CONFIG: dict[str, Any] = {"hidden": 128, "heads": 4, "kv_heads": 2, "inter": 192, "vocab": 320}


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("gguf") / "hf", **CONFIG)


@pytest.fixture
def write(hf_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    config = json.loads((hf_dir / "config.json").read_text(encoding="utf-8"))

    def make(**options: Any) -> Path:
        return write_gguf(tmp_path / "model.gguf", hf_dir, config, **options)

    return make


def all_tensors(path: Path) -> dict[str, Any]:
    source = open_source(path)
    try:
        return {
            name: source.read_rows(name, 0, info.shape[0]) for name, info in source.tensors.items()
        }
    finally:
        source.close()


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1, Kind.Q4_0])
def test_every_tensor_equals_transformers_loader(write: Callable[..., Path], kind: Kind) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    tokenizer = train_tokenizer(vocab=320)
    path = write(kind=kind, tokenizer=tokenizer, pre="gpt-2")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    expected = {name: value.numpy() for name, value in model.state_dict().items()}
    found = all_tensors(path)
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


def test_blocks_of_permuted_rows_at_any_place(write: Callable[..., Path]) -> None:
    path = write()
    name = "model.layers.1.self_attn.q_proj.weight"
    source = open_source(path)
    whole = source.read_rows(name, 0, 128)
    for begin, end in ((0, 16), (16, 48), (31, 33), (127, 128), (5, 128)):
        assert np.array_equal(source.read_rows(name, begin, end), whole[begin:end])
    source.close()


def test_gguf_and_hf_folder_become_the_same_weights(
    write: Callable[..., Path], hf_dir: Path, tmp_path: Path
) -> None:
    path = write(tokenizer=train_tokenizer(vocab=320))
    for source, out in ((path, tmp_path / "a"), (hf_dir, tmp_path / "b")):
        convert(source, out, ConvertOptions(scheme="w6ax", tp=(1, 2)))
    for tp in ("1-gpu", "2-gpu"):
        a, b = (
            {p.name: p.read_bytes() for p in (tmp_path / side / tp).glob("*.bin")} for side in "ab"
        )
        assert a == b
    models = []
    for side in "ab":
        text = (tmp_path / side / "1-gpu/manifest.json").read_text(encoding="utf-8")
        models.append(json.loads(text)["model"] | {"name": ""})
    assert models[0] == models[1]


def original(pre: str) -> Tokenizer:
    """A tokenizer of that kind, with the parts that such models have in their tokenizer.json."""
    tokenizer = train_tokenizer(vocab=320)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    digits = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}.get(pre)
    if digits:
        split = pre_tokenizers.Split(Regex(f"{letters}|{digits}|{rest}"), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if pre == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    if pre == "llama-bpe":
        content = json.loads(tokenizer.to_str())
        content["model"]["ignore_merges"] = True
        tokenizer = Tokenizer.from_str(json.dumps(content))
    return tokenizer


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_rebuilt_tokenizer_cuts_as_the_original(
    write: Callable[..., Path], tmp_path: Path, pre: str
) -> None:
    expected = original(pre)
    path = write(tokenizer=expected, pre=pre)
    convert(path, tmp_path / "out", ConvertOptions())
    found = Tokenizer.from_file(str(tmp_path / "out/1-gpu/tokenizer.json"))
    bos = [0] if pre == "llama-bpe" else []  # those models start every text with it
    for text in [*SAMPLES, "Cafe\u0301"]:
        ids = found.encode(text).ids
        assert ids == bos + expected.encode(text).ids, text
        assert found.encode(text, add_special_tokens=False).ids == ids[len(bos) :]
        assert found.decode(ids) == expected.decode(ids)
    settings = (tmp_path / "out/1-gpu/tokenizer_config.json").read_text(encoding="utf-8")
    loaded = json.loads(settings)
    assert (loaded["bos_token"], loaded["eos_token"], loaded["pad_token"]) == (
        "<s>",
        "</s>",
        "<pad>",
    )
    assert loaded["chat_template"].startswith("{% for m in messages %}")


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
def test_rebuilt_tokenizer_equals_transformers_reader(
    write: Callable[..., Path], tmp_path: Path, pre: str
) -> None:
    """Not smollm: transformers' reader does not split that kind's digits, its models do."""
    transformers = pytest.importorskip("transformers")
    path = write(tokenizer=original(pre), pre=pre)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    convert(path, tmp_path / "out", ConvertOptions())
    mine = Tokenizer.from_file(str(tmp_path / "out/1-gpu/tokenizer.json"))
    for text in SAMPLES:
        expected = theirs(text, add_special_tokens=False).input_ids
        assert mine.encode(text, add_special_tokens=False).ids == expected, text


def test_llama3_rope_is_derived_from_its_factors(
    hf_dir: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=128, num_attention_heads=4, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 10000.0 ** (-np.arange(0, 32, 2) / 32)
    factors = (plain / scaled.numpy()).astype(np.float32)

    add = gguf.GGUFWriter.write_header_to_file

    def with_factors(self: gguf.GGUFWriter, path: Path | None = None) -> None:
        self.add_tensor("rope_freqs.weight", factors)
        add(self, path)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_factors)
    found = open_source(write()).config.rope
    assert found is not None
    assert (found.type, found.factor, found.original_max_positions) == ("llama3", 32.0, 8192)
    factors[3] *= 1.01
    with pytest.raises(WeightError, match="follow no rule"):
        _ = open_source(write()).config


def test_metadata_becomes_the_config(write: Callable[..., Path]) -> None:
    path = write(extra={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    config = open_source(path).config
    assert (config.norm_eps, config.num_kv_heads, config.head_dim) == (1e-6, 2, 32)
    assert config.rope is not None
    assert (config.rope.type, config.rope.factor) == ("linear", 4.0)
    assert config.tie_word_embeddings is False


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "rope type 'yarn'"),
        ({"llama.expert_count": 8.0}, "mixture of experts"),
        ({"llama.rope.dimension_count": 16.0}, "rotates 16 of 32"),
    ],
)
def test_what_cannot_run_is_refused(
    write: Callable[..., Path], extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightError, match=message):
        _ = open_source(write(extra=extra)).config


def test_unknown_pre_tokenizer_is_refused_by_name(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(tokenizer=train_tokenizer(vocab=320), pre="chameleon")
    with pytest.raises(WeightError, match="pre-tokenizer 'chameleon'") as caught:
        convert(path, tmp_path / "out", ConvertOptions())
    assert "smollm" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "falcon")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightError, match="GGUF architecture 'falcon'"):
        _ = open_source(tmp_path / "x.gguf").config


def test_short_and_broken_files(write: Callable[..., Path]) -> None:
    path = write()
    data = path.read_bytes()
    path.write_bytes(data[:-4096])
    with pytest.raises(WeightError, match="gguf"):
        open_source(path)
    path.write_bytes(b"GGUG" + data[4:])
    with pytest.raises(WeightError, match="no valid GGUF file"):
        open_source(path)
