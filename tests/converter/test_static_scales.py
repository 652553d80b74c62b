"""Static activation scales of w8a8: those of the calibration, in files and in the engine."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import safetensors.numpy

from flexq_ft import _native
from flexq_ft.converter import convert, verify
from flexq_ft.converter.calibration import cut_windows
from flexq_ft.converter.source import open_source
from flexq_ft.converter.transforms import Smoothing
from flexq_ft.errors import WeightError
from tests.converter.layout_oracle import Oracle, read_tensors
from tests.converter.smoothing_models import (
    FACTORS,
    KINDS,
    TEXT,
    Folder,
    fold,
    folded_model,
    model_with_outliers,
    options,
)
from tests.reference import quantization as oracle
from tests.tools.gpus import two_devices
from tests.tools.linears import layer_weights

torch = pytest.importorskip("torch")

SCHEMA = json.loads((TEXT.parents[1] / "schemas" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Small models whose norms have outlier channels."""
    root = tmp_path_factory.mktemp("smoothing")
    return cache(lambda kind: model_with_outliers(root / kind, kind))


# Module whose input a linear reads, and the stems of the files that hold it.
STEMS = {
    "qkv": ("self_attn.q_proj", ["attention.query_key_value"]),
    "o": ("self_attn.o_proj", ["attention.dense"]),
    "gate_up": ("mlp.gate_proj", ["mlp.gate_proj", "mlp.up_proj"]),
    "down": ("mlp.down_proj", ["mlp.down_proj"]),
    "fc1": ("fc1", ["mlp.dense_h_to_4h"]),
    "fc2": ("fc2", ["mlp.dense_4h_to_h"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_static_scales_are_those_of_the_calibration(
    folder: Folder, tmp_path: Path, kind: str
) -> None:
    source = folder(kind)
    convert(source, tmp_path, options(tp=(1, 2), activation_scales="static"))
    made = tmp_path / "1-gpu"
    factors = safetensors.numpy.load_file(made / FACTORS)
    model = folded_model(source, factors)
    decoder = getattr(model.model, "decoder", model.model)
    seen: dict[str, float] = {}
    for index, layer in enumerate(decoder.layers):
        for linear, (path, _) in STEMS.items():
            path = path.replace("o_proj", "out_proj") if kind == "opt" else path
            if path not in dict(layer.named_modules()):
                continue

            def see(module: Any, args: Any, name: str = f"layers.{index}.{linear}") -> None:
                seen[name] = max(seen.get(name, 0.0), float(args[0].abs().max()))

            layer.get_submodule(path).register_forward_pre_hook(see)
    windows = cut_windows(TEXT.read_bytes(), open_source(source), sequences=6, length=40)
    with torch.no_grad():
        for window in windows.windows:
            model(torch.tensor(window[None]), use_cache=False)
    maxima: dict[str, float] = {}
    for name, expected in seen.items():
        _, layer, linear = name.split(".")
        for stem in STEMS[linear][1]:
            file = made / f"model.layers.{layer}.{stem}.weight.w8.act_scale.0.bin"
            scale = np.frombuffer(file.read_bytes(), np.float32)
            assert scale.shape == (1,)
            np.testing.assert_allclose(scale * 127, expected, rtol=1e-4)
            maxima[f"model.layers.{layer}.{stem}.weight"] = Smoothing.load(made / FACTORS).maxima[
                name
            ]
    assert len(seen) == 8
    folded, config = (
        fold(read_tensors(source), factors),
        json.loads((source / "config.json").read_text()),
    )
    for tp in (1, 2):
        files = Oracle(folded, config, scheme="w8a8", dtype="fp16", tp=tp, maxima=maxima).files
        out = tmp_path / f"{tp}-gpu"
        assert {p.name: p.read_bytes() for p in out.glob("*.bin")} == files
        assert verify(out) == []
    manifest = json.loads((made / "manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    assert manifest["quantization"]["activation_scales"] == "static"


@pytest.mark.parametrize("device", two_devices())
@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_the_engine_rounds_inputs_with_static_scales(
    folder: Folder, tmp_path: Path, kind: str, device: str
) -> None:
    if device == "cuda":
        kind += "-gpu"
    convert(folder(kind), tmp_path, options(activation_scales="static", dtype="fp32"))
    made = tmp_path / "1-gpu"
    weights = layer_weights(folded_model(folder(kind), safetensors.numpy.load_file(made / FACTORS)))
    maxima = Smoothing.load(made / FACTORS).maxima
    # Powers of two: a GPU takes x in fp16, and what it takes must be x.
    dtype, factors = ("fp32", (1, 64, 2**30)) if device == "cpu" else ("fp16", (1, 64))
    engine = _native.Engine(str(made), device=device, dtype=dtype)
    if device == "cuda":
        assert "op by op" in engine.step_note
    records = [r for r in engine.trace(list(range(3, 27))) if r["name"] != "lm_head"]
    assert {r["name"] for r in records} == set(weights) == set(maxima)
    for record in records:
        w, bias = weights[record["name"]]
        scale = np.float32(maxima[record["name"]]) / np.float32(127)
        # What is far outside of the calibrated range ends at the last code; NaN stays NaN.
        for x in (record["x"] * record["x"].dtype.type(factor) for factor in factors):
            y = static_product(x, w, bias, scale)
            got = engine.run_linear(record["name"], x)
            assert_close(got, y, record["name"])
        y = static_product(record["x"], w, bias, scale)
        assert_close(record["y"], y, record["name"])
        x = record["x"].copy()
        x[1, 2] = np.nan
        nan = np.isnan(engine.run_linear(record["name"], x))
        assert nan[1].all() and not nan[0].any() and not nan[2:].any()


def assert_close(got: Any, y: Any, name: str) -> None:
    assert np.abs(got - y).max() <= 1e-5 * np.abs(y).max(), name


def static_product(x: Any, w: Any, bias: Any, scale: Any) -> Any:
    k = x.shape[1]
    a, _ = oracle.activations(x, act_bits=8, group=k, static_scale=float(scale))
    codes, scales = oracle.weight_int8(w)
    y = a.astype(np.float64) @ codes.T.astype(np.float64) * scales * float(scale)
    return y if bias is None else y + bias


@pytest.mark.parametrize("lm_head", ["w8", "w6"])
def test_a_quantised_head_beside_static_scales_keeps_its_inputs(
    folder: Folder, tmp_path: Path, lm_head: str
) -> None:
    records = {}
    for head in ("fp16", lm_head):
        chosen = options(activation_scales="static", dtype="fp32", lm_head=head)
        convert(folder("llama"), tmp_path / head, chosen)
        engine = _native.Engine(str(tmp_path / head / "1-gpu"))
        records[head] = engine.trace(list(range(3, 27)))[-1]
    x, y = records[lm_head]["x"], records[lm_head]["y"]
    np.testing.assert_array_equal(x, records["fp16"]["x"])
    w = read_tensors(folder("llama"))["model.embed_tokens.weight"].astype(np.float32)
    codes, scales = oracle.weight_int8(w) if lm_head == "w8" else oracle.weight_int6(w)
    columns = scales[:, None] if lm_head == "w8" else np.repeat(scales, oracle.GROUP, axis=1)
    want = x.astype(np.float64) @ (codes * columns[:, : w.shape[1]].astype(np.float64)).T
    assert np.abs(y - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize(
    ("value", "message"), [(0.0, "holds 0"), (np.nan, "holds -?nan"), (3.0, "gate and up have")]
)
def test_a_faulty_static_scale_is_refused_by_name(
    folder: Folder, tmp_path: Path, value: float, message: str
) -> None:
    convert(folder("llama"), tmp_path, options(activation_scales="static"))
    file = tmp_path / "1-gpu/model.layers.1.mlp.up_proj.weight.w8.act_scale.0.bin"
    file.write_bytes(np.float32(value).tobytes())
    with pytest.raises(WeightError, match=r"up_proj\.weight\.w8\.act_scale") as caught:
        _native.Engine(str(tmp_path / "1-gpu"))
    assert re.search(message, f"{caught.value.message} {caught.value.cause}")
