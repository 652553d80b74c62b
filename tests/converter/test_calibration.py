"""Calibration: windows of a text, and statistics of linears against hooks on the whole model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft.converter.calibration import (
    ChannelMaxima,
    SampledRows,
    SecondMoment,
    calibrate,
    cut_windows,
)
from flexq_ft.converter.source import Source, open_source
from flexq_ft.errors import ConfigError, DeviceError, WeightError
from tests.tools.checkpoints import make_checkpoint
from tests.tools.gguf_files import write_gguf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Checkpoint = Callable[[str], Path]

TEXT = (Path(__file__).parents[2] / "configs" / "texts" / "river-lock.txt").read_bytes()
# Runtime name -> Hugging Face's module whose input it is.
LLAMA = {
    "qkv": "self_attn.q_proj",
    "o": "self_attn.o_proj",
    "gate_up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
OPT = {"qkv": "self_attn.v_proj", "o": "self_attn.out_proj", "fc1": "fc1", "fc2": "fc2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Small models with a tokenizer."""
    kinds: dict[str, dict[str, Any]] = {
        "llama": {"hidden": 96, "heads": 6, "kv_heads": 2, "inter": 200, "tied": True},
        "qwen2": {"family": "qwen2", "heads": 4, "kv_heads": 2, "dtype": "bfloat16"},
        "opt": {"family": "opt", "hidden": 72, "heads": 4, "inter": 168, "tied": True},
    }
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_checkpoint(
                tmp_path_factory.mktemp("calibration") / kind,
                layers=3,
                vocab=320,
                positions=64,
                tokenizer=True,
                **kinds[kind],
            )
        return made[kind]

    return get


class Everything:
    """Keeps all that a statistic is given, beside the statistics themselves."""

    def __init__(self) -> None:
        self.maxima, self.moment, self.sample = ChannelMaxima(), SecondMoment(), SampledRows(7)

    def add(self, x: Any) -> None:
        for part in (self.maxima, self.moment, self.sample):
            part.add(x)


def hooked_inputs(model: Any, windows: Any, linears: dict[str, str]) -> dict[str, Any]:
    """[tokens, K] of every linear, float64, from one pass of the whole model per window."""
    decoder = getattr(model.model, "decoder", model.model)
    seen: dict[str, list[Any]] = {}
    for index, layer in enumerate(decoder.layers):
        for name, path in linears.items():
            rows = seen.setdefault(f"layers.{index}.{name}", [])
            layer.get_submodule(path).register_forward_pre_hook(
                lambda module, args, rows=rows: rows.append(
                    args[0].reshape(-1, args[0].shape[-1]).numpy()
                )
            )
    with torch.no_grad():
        for window in windows:
            model(torch.tensor(window[None]), use_cache=False)
    return {name: np.concatenate(rows).astype(np.float64) for name, rows in seen.items()}


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
        ),
    ],
)
@pytest.mark.parametrize(("kind", "linears"), [("llama", LLAMA), ("qwen2", LLAMA), ("opt", OPT)])
def test_statistics_are_those_of_the_whole_model(
    folder: Callable[[str], Path], kind: str, linears: dict[str, str], device: str
) -> None:
    source = open_source(folder(kind))
    windows = cut_windows(TEXT, source, sequences=5, length=33)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder(kind), dtype=torch.float32)
    expected = hooked_inputs(model.eval(), windows.windows, linears)
    found = {}
    for layer in calibrate(source, windows, lambda name: Everything(), device=device):
        assert set(layer.statistics) == {f"layers.{layer.layer}.{name}" for name in linears}
        found |= layer.statistics
        for name, given in layer.linears.items():
            path = f"layers.{layer.layer}.{linears[name.rpartition('.')[2]]}"
            weight = next(m for n, m in model.named_modules() if n.endswith(path)).weight
            assert any(torch.equal(linear.weight.cpu(), weight) for linear in given)
    assert list(found) == list(expected)
    for name, x in expected.items():
        limit = 1e-5 * np.abs(x).max()
        statistic = found[name]
        np.testing.assert_allclose(statistic.maxima.result(), np.abs(x).max(0), atol=limit)
        moment = x.T @ x / len(x)
        np.testing.assert_allclose(
            statistic.moment.mean().cpu().numpy(), moment, atol=1e-5 * np.abs(moment).max()
        )
        assert statistic.moment.tokens == len(x) == 5 * 33
        np.testing.assert_allclose(statistic.sample.result(), x[::7], atol=limit)


def test_a_gguf_file_is_calibrated_as_its_checkpoint(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The tensors of the GGUF file are the checkpoint's; so are the statistics."""
    checkpoint = folder("llama")
    config = json.loads((checkpoint / "config.json").read_text())
    gguf = open_source(write_gguf(tmp_path / "model.gguf", checkpoint, config))
    windows = cut_windows(TEXT, open_source(checkpoint), sequences=3, length=20)
    pairs = zip(
        calibrate(open_source(checkpoint), windows, lambda name: ChannelMaxima(), device="cpu"),
        calibrate(gguf, windows, lambda name: ChannelMaxima(), device="cpu"),
        strict=True,
    )
    for ours, theirs in pairs:
        for name, statistic in ours.statistics.items():
            np.testing.assert_allclose(
                theirs.statistics[name].result(), statistic.result(), rtol=1e-4, atol=1e-5
            )


def test_only_what_is_asked_for_is_kept(folder: Callable[[str], Path]) -> None:
    source = open_source(folder("opt"))
    windows = cut_windows(TEXT, source, sequences=1, length=8)

    def wanted(name: str) -> ChannelMaxima | None:
        return ChannelMaxima() if name.endswith("fc2") else None

    layers = list(calibrate(source, windows, wanted, device="cpu"))
    assert [list(layer.statistics) for layer in layers] == [[f"layers.{i}.fc2"] for i in range(3)]


def test_windows_are_evenly_spaced_over_the_text(folder: Callable[[str], Path]) -> None:
    source = open_source(folder("llama"))
    one = cut_windows(TEXT, source, sequences=1, length=64)
    ids = cut_windows(TEXT, source, sequences=10**6, length=1).windows[:, 0]
    assert one.text_tokens == len(ids) and one.text_sha256 == hashlib.sha256(TEXT).hexdigest()
    np.testing.assert_array_equal(one.windows, ids[None, :64])
    three = cut_windows(TEXT, source, sequences=3, length=50).windows
    starts = [0, (len(ids) - 50) // 2, len(ids) - 50]
    np.testing.assert_array_equal(three, np.stack([ids[s : s + 50] for s in starts]))
    # As many as fit without overlap, which is said.
    many = cut_windows(TEXT, source, sequences=4096, length=60)
    assert many.windows.shape == (len(ids) // 60, 60)
    assert "asked for 4096 x 60: the text is short" in many.describe()
    short = cut_windows(b"the river", source, sequences=8, length=60)
    assert short.windows.shape == (1, short.text_tokens)


def test_truncation_and_padding_of_the_tokenizer_file_do_not_cut_the_text(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    whole = cut_windows(TEXT, open_source(folder("llama")), sequences=4, length=50)
    copied = shutil.copytree(folder("llama"), tmp_path / "copied")
    tokenizer = Tokenizer.from_file(str(copied / "tokenizer.json"))
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=9000)
    tokenizer.save(str(copied / "tokenizer.json"))
    again = cut_windows(TEXT, open_source(copied), sequences=4, length=50)
    np.testing.assert_array_equal(again.windows, whole.windows)


def test_added_tokens_of_the_tokenizers_config_are_tokens_of_the_text(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    copied = shutil.copytree(folder("llama"), tmp_path / "copied")
    config = copied / "tokenizer_config.json"
    word = TEXT.decode()[:12]
    config.write_text(json.dumps({"added_tokens_decoder": {"9": {"content": word}}}))
    with pytest.raises(ConfigError, match="gives token 320, and the model has 320"):
        cut_windows(TEXT, open_source(copied), sequences=1, length=8)
    config.write_text(json.dumps({"added_tokens_decoder": {"9": word}}))
    with pytest.raises(WeightError, match=r"tokenizer_config\.json of copied cannot be read"):
        cut_windows(TEXT, open_source(copied), sequences=1, length=8)


def test_bad_input_is_named(folder: Callable[[str], Path], tmp_path: Path) -> None:
    source = open_source(folder("llama"))

    def cut(text: bytes = TEXT, *, of: Source = source, length: int = 16) -> Any:
        return cut_windows(text, of, sequences=2, length=length)

    with pytest.raises(ConfigError, match=r"65 tokens do not fit .* 64 positions"):
        cut(length=65)
    with pytest.raises(ConfigError, match="not UTF-8: byte 0xff at offset 3"):
        cut(b"abc\xff")
    with pytest.raises(ConfigError, match="holds no token"):
        cut(b"")
    bare = make_checkpoint(tmp_path / "bare", hidden=32, layers=1, tokenizer=False)
    with pytest.raises(ConfigError, match=r"bare holds no tokenizer\.json"):
        cut(of=open_source(bare))
    small = make_checkpoint(tmp_path / "small", hidden=32, heads=2, layers=1, tokenizer=True)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": 40, "eos_token_id": 1}))
    with pytest.raises(ConfigError, match=r"gives token \d+, and the model has 40"):
        cut(of=open_source(small))
    (small / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightError, match=r"tokenizer\.json of small cannot be read"):
        cut(of=open_source(small))
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="cuda: torch sees no GPU"):
            next(calibrate(source, cut(), lambda name: ChannelMaxima(), device="cuda"))


def test_without_torch_the_error_says_what_to_install(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    source = open_source(folder("llama"))
    windows = cut_windows(TEXT, source, sequences=1, length=8)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="needs torch and transformers") as caught:
        next(calibrate(source, windows, lambda name: ChannelMaxima()))
    assert caught.value.hint == "pip install torch transformers"


def test_values_that_are_not_finite_name_the_layer(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    import safetensors.torch

    kept = make_checkpoint(tmp_path / "inf", hidden=32, heads=2, layers=2, tokenizer=True)
    path = kept / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.inf
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    source = open_source(kept)
    windows = cut_windows(TEXT, source, sequences=1, length=8)
    with pytest.raises(WeightError, match="layer 1 of inf gives values that are not finite"):
        list(calibrate(source, windows, lambda name: ChannelMaxima(), device="cpu"))
