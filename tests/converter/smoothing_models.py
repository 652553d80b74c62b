"""Models whose norms have outlier channels, and what smoothing makes of their tensors, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flexq_ft.converter import CalibrationOptions, ConvertOptions
from tests.converter.layout_oracle import read_tensors
from tests.tools.checkpoints import make_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT = Path(__file__).parents[2] / "configs" / "texts" / "river-lock.txt"
FACTORS = "smoothing.safetensors"
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"hidden": 160, "heads": 4, "kv_heads": 2, "head_dim": 40, "inter": 264, "tied": True},
    "qwen2": {"family": "qwen2", "heads": 4, "kv_heads": 2, "dtype": "bfloat16"},
    "opt": {"family": "opt", "hidden": 136, "heads": 4, "inter": 272, "tied": True},
}
# Of sizes that a GPU takes: multiples of 16.
GPU_KINDS: dict[str, dict[str, Any]] = {
    "llama-gpu": {"hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "inter": 272},
    "opt-gpu": {"family": "opt", "hidden": 128, "heads": 2, "inter": 272, "tied": True},
}
Folder = Callable[[str], Path]


def model_with_outliers(path: Path, kind: str) -> Path:
    make_checkpoint(path, vocab=320, positions=64, **(KINDS | GPU_KINDS)[kind])
    _add_outliers(path / "model.safetensors")
    return path


def _add_outliers(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    for name, values in tensors.items():
        if ".layers." in name and "norm" in name and name.endswith("weight"):
            values[5] *= 30
            values[17] = 0
    save_file(tensors, path, metadata={"format": "pt"})


def options(scheme: str = "w8a8", *, tp: tuple[int, ...] = (1,), **more: Any) -> ConvertOptions:
    text = CalibrationOptions(text=TEXT, sequences=6, length=40, device="cpu")
    smooth = None if scheme == "w8a8" else True
    return ConvertOptions(
        **{"scheme": scheme, "calibration": text, "smooth": smooth, "tp": tp, **more}
    )


def groups(tensors: dict[str, Any]) -> Iterator[tuple[str, list[str], list[str]]]:
    """(runtime name, tensors of the norm, weights of the linears behind it), layer by layer."""
    is_opt = any(".fc1." in name for name in tensors)
    root = "model.decoder.layers" if is_opt else "model.layers"
    parts = [("qkv", "self_attn_layer_norm" if is_opt else "input_layernorm", "self_attn.{}_proj")]
    if is_opt:
        parts.append(("fc1", "final_layer_norm", "fc1"))
    else:
        parts.append(("gate_up", "post_attention_layernorm", "mlp.{}_proj"))
    for layer in range(2):
        at = f"{root}.{layer}"
        for linear, norm, form in parts:
            names = {"qkv": "qkv", "gate_up": ("gate", "up"), "fc1": ("",)}[linear]
            weights = [f"{at}.{form.format(name)}.weight" for name in names]
            norms = [f"{at}.{norm}.{kind}" for kind in ("weight", "bias")]
            yield f"layers.{layer}.{linear}", [n for n in norms if n in tensors], weights


def fold(tensors: dict[str, Any], factors: dict[str, Any]) -> dict[str, Any]:
    folded = dict(tensors)
    for name, norms, weights in groups(tensors):
        folded |= {n: tensors[n] / factors[name] for n in norms}
        folded |= {n: tensors[n] * factors[name] for n in weights}
    return folded


def folded_model(path: Path, factors: dict[str, Any]) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    state = {name: torch.from_numpy(v) for name, v in fold(read_tensors(path), factors).items()}
    model.load_state_dict(state, strict=False)
    return model
