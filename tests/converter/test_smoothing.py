"""SmoothQuant: factors, folded bytes and searched alphas against NumPy; what a folder keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import safetensors.numpy

from flexq_ft import _native
from flexq_ft.converter import CalibrationOptions, convert, plan, verify
from flexq_ft.converter.calibration import SampledRows, calibrate, cut_windows
from flexq_ft.converter.dtypes import as_float32
from flexq_ft.converter.smoothing import smoothing_factors
from flexq_ft.converter.source import Source, open_source
from flexq_ft.converter.transforms import RotatedSource, SmoothedSource, Smoothing
from flexq_ft.errors import ConfigError, WeightError
from flexq_ft.orchestrate.cli.main import run_cli
from tests.converter.conftest import folder_bytes
from tests.converter.layout_oracle import Oracle, read_tensors
from tests.converter.smoothing_models import (
    FACTORS,
    KINDS,
    TEXT,
    Folder,
    fold,
    groups,
    model_with_outliers,
    options,
)
from tests.reference import quantization as oracle
from tests.tools.checkpoints import make_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SCHEMA = json.loads((TEXT.parents[1] / "schemas" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Small models whose norms have outlier channels."""
    root = tmp_path_factory.mktemp("smoothing")
    return cache(lambda kind: model_with_outliers(root / kind, kind))


def oracle_factors(path: Path, windows: Any, alpha: float) -> dict[str, Any]:
    """From hooks on the whole Hugging Face model, in float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    modules = dict(model.named_modules())
    tensors = read_tensors(path)
    maxima: dict[str, Any] = {}

    def watch(name: str, module: Any) -> None:
        def see(_: Any, args: Any) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).double().abs().amax(0).numpy()
            maxima[name] = np.maximum(maxima.get(name, 0.0), x)

        module.register_forward_pre_hook(see)

    for name, _, weights in groups(tensors):
        watch(name, modules[weights[0].removesuffix(".weight")])
    with torch.no_grad():
        for window in windows:
            model(torch.tensor(window[None]), use_cache=False)
    factors = {}
    for name, _, weights in groups(tensors):
        w = np.abs(np.concatenate([tensors[n] for n in weights])).max(0).astype(np.float64)
        f = np.clip(maxima[name] ** alpha / w ** (1 - alpha), 2.0**-10, 2.0**10)
        factors[name] = np.where((maxima[name] == 0) | (w == 0), 1.0, f)
    return factors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("scheme", "alpha"), [("w8a8", 0.5), ("w8a8", 0.8), ("w6ax", 0.3)])
def test_every_byte_is_that_of_the_folded_tensors(
    folder: Folder, tmp_path: Path, kind: str, scheme: str, alpha: float
) -> None:
    source = folder(kind)
    convert(source, tmp_path, options(scheme, tp=(1, 2), smooth_alpha=alpha))
    config = json.loads((source / "config.json").read_text())
    windows = cut_windows(TEXT.read_bytes(), open_source(source), sequences=6, length=40)
    factors = safetensors.numpy.load_file(tmp_path / "1-gpu" / FACTORS)
    expected = oracle_factors(source, windows.windows, alpha)
    assert set(factors) == set(expected)
    for name, f in factors.items():
        np.testing.assert_allclose(f, expected[name], rtol=1e-4)
        if kind != "opt":  # a zero weight of an RMS norm: nothing passes there
            assert f[17] == 1.0
    folded = fold(read_tensors(source), factors)
    for tp in (1, 2):
        made = tmp_path / f"{tp}-gpu"
        files = Oracle(folded, config, scheme=scheme, dtype="fp16", tp=tp).files
        assert {p.name: p.read_bytes() for p in made.glob("*.bin")} == files
        assert verify(made) == []
        manifest = json.loads((made / "manifest.json").read_text())
        jsonschema.validate(manifest, SCHEMA)
        smoothing = manifest["quantization"]["smoothing"]
        assert (smoothing["alpha"], smoothing["alphas"]) == (alpha, None)
        text = windows.text_sha256
        assert smoothing["calibration"] == {"text_sha256": text, "sequences": 6, "length": 40}
        assert smoothing["tokens"] == 240
        assert _native.open_model_folder(str(made)).scheme == scheme


def test_factors_are_clamped_and_one_where_nothing_passes() -> None:
    a = np.array([0, 1, 4, 1e30, 1e-30, 1e-40], np.float32)
    w = np.array([1, 0, 1, 1e-30, 1e30, 1], np.float32)
    f = smoothing_factors(a, w, 0.5)
    np.testing.assert_allclose(f, [1, 1, 2, 2**10, 2**-10, 2**-10])
    assert f.dtype == np.float32
    np.testing.assert_allclose(smoothing_factors(a, w, 1.0)[1:4], [1, 4, 2**10])
    np.testing.assert_allclose(smoothing_factors(a[2:3], w[2:3] * 4, 0.0), [0.25])


def logits(source: Source, ids: Any) -> Any:
    """Of a torch model with the source's tensors."""
    raw = source.hf_config()
    config = transformers.CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = {
        name: torch.from_numpy(as_float32(source.read_rows(name, 0, info.shape[0])).copy())
        for name, info in source.tensors.items()
    }
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rotate", [False, True])
def test_the_function_stays_in_float(folder: Folder, kind: str, rotate: bool) -> None:
    if rotate and kind == "opt":
        pytest.skip("LayerNorm cannot be rotated")
    source = open_source(folder(kind))
    rng = np.random.default_rng(0)
    below: Source = RotatedSource(source) if rotate else source
    linears = [name for name, _, _ in groups(read_tensors(folder(kind)))]
    factors = {
        name: np.exp(rng.normal(size=source.config.hidden_size)).astype(np.float32)
        for name in linears
    }
    smoothing = Smoothing(factors=factors, maxima={}, alphas=None, tokens=1)
    ids = torch.tensor([[3, 200, 17, 9, 301, 44]])
    want, got = logits(source, ids), logits(SmoothedSource(below, smoothing), ids)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize(("scheme", "bits"), [("w8a8", 8), ("w6ax", 6)])
def test_a_search_takes_the_least_error_of_the_rounded_output(
    folder: Folder, tmp_path: Path, scheme: str, bits: int
) -> None:
    source = folder("llama")
    convert(source, tmp_path, options(scheme, smooth_alpha="search"))
    made = tmp_path / "1-gpu"
    manifest = json.loads((made / "manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    smoothing = manifest["quantization"]["smoothing"]
    assert smoothing["alpha"] == "search"
    opened = open_source(source)
    windows = cut_windows(TEXT.read_bytes(), opened, sequences=6, length=40)
    factors = safetensors.numpy.load_file(made / FACTORS)
    group = 160 if scheme == "w8a8" else 128
    chosen = []
    for layer in calibrate(opened, windows, lambda name: SampledRows(1), device="cpu"):
        for linear in (f"layers.{layer.layer}.qkv", f"layers.{layer.layer}.gate_up"):
            x = layer.statistics[linear].result()
            w = np.concatenate([m.weight.detach().numpy() for m in layer.linears[linear]])
            maxima = np.abs(x).max(0), np.abs(w).max(0)
            errors = {}
            for alpha in (None, *(step / 10 for step in range(1, 10))):
                f = np.ones(160) if alpha is None else smoothing_factors(*maxima, alpha)
                errors[alpha] = rounded_error(x, w, np.float32(f), bits=bits, group=group)
            found = smoothing["alphas"][linear]
            assert errors[found] == pytest.approx(min(errors.values()), rel=1e-3)
            f = np.ones(160) if found is None else smoothing_factors(*maxima, found)
            np.testing.assert_allclose(factors[linear], f, rtol=1e-5)
            chosen.append(found)
    # The outlier channel makes it worth while somewhere.
    assert any(alpha is not None for alpha in chosen)
    assert _native.open_model_folder(str(made)).scheme == scheme


def rounded_error(x: Any, w: Any, f: Any, *, bits: int, group: int) -> float:
    codes, scales = oracle.activations(x / f, act_bits=bits, group=group)
    xq = codes[:, : x.shape[1]] * np.repeat(scales, group, axis=1)[:, : x.shape[1]]
    if group == 128:
        codes, scales = oracle.weight_int6(w * f)
        wq = codes * np.repeat(scales.astype(np.float32), 128, axis=1)[:, : w.shape[1]]
    else:
        codes, scales = oracle.weight_int8(w * f)
        wq = codes * scales[:, None]
    return float(np.square(xq.astype(np.float64) @ wq.T - x.astype(np.float64) @ w.T).sum())


@pytest.fixture
def no_calibration(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on a calibration fails the test."""

    def refuse() -> None:
        def calibrated(*args: Any, **kwargs: Any) -> None:
            pytest.fail("the factors were computed again")

        monkeypatch.setattr("flexq_ft.converter.calibrator.compute_smoothing", calibrated)

    return refuse


class Stop:
    """Ends a conversion after some tensors and both layers of the calibration."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def start(self, **_: object) -> None:
        pass

    def advance(self, **_: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def finish(self) -> None:
        pass


def test_a_stopped_conversion_goes_on_with_its_factors(
    folder: Folder, tmp_path: Path, no_calibration: Callable[[], None]
) -> None:
    convert(folder("llama"), tmp_path / "whole", options(tp=(1, 2)))
    whole = {size: folder_bytes(tmp_path / "whole" / size) for size in ("1-gpu", "2-gpu")}
    for steps in (1, 9):
        out = tmp_path / f"stopped-{steps}"
        with pytest.raises(KeyboardInterrupt):
            convert(folder("llama"), out, options(tp=(1, 2)), progress=Stop(steps))
    no_calibration()
    report = convert(folder("llama"), tmp_path / "stopped-9", options(tp=(1, 2)))
    assert [job.action for job in report.folders] == ["resumed", "resumed"]
    assert report.calibration == ""
    assert {size: folder_bytes(tmp_path / "stopped-9" / size) for size in whole} == whole


def test_a_complete_folder_is_verified_and_repaired_without_a_calibration(
    folder: Folder, tmp_path: Path, no_calibration: Callable[[], None]
) -> None:
    report = convert(folder("opt"), tmp_path, options(smooth_alpha="search"))
    assert "6 x 40 tokens" in report.calibration
    made = tmp_path / "1-gpu"
    before = folder_bytes(made)
    no_calibration()
    again = convert(folder("opt"), tmp_path, options(smooth_alpha="search"))
    assert again.folders[0].action == "verified"
    damaged = made / "model.layers.1.attention.query_key_value.weight.w8.0.bin"
    damaged.write_bytes(b"\0" + damaged.read_bytes()[1:])
    repaired = convert(folder("opt"), tmp_path, options(smooth_alpha="search"))
    assert repaired.folders[0].action == "repaired"
    assert folder_bytes(made) == before
    # Another size beside it has the same factors.
    convert(folder("opt"), tmp_path, options(smooth_alpha="search", tp=(1, 2)))
    assert (tmp_path / "2-gpu" / FACTORS).read_bytes() == before[FACTORS]
    assert verify(tmp_path / "2-gpu") == []


def test_lost_factors_are_a_fault_and_everything_is_made_again(
    folder: Folder, tmp_path: Path
) -> None:
    convert(folder("llama"), tmp_path, options())
    made = tmp_path / "1-gpu"
    before = folder_bytes(made)
    (made / FACTORS).write_bytes(before[FACTORS][:-4] + b"\0\0\0\0")
    (fault,) = verify(made)
    assert fault.file == FACTORS and "has hash" in fault.problem
    report = convert(folder("llama"), tmp_path, options())
    assert (report.folders[0].action, folder_bytes(made)) == ("repaired", before)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"smooth_alpha": 0.6}, "its smoothing: alpha 0.5, .*, this conversion's: alpha 0.6"),
        ({"smooth_alpha": "search"}, "this conversion's: alpha search, sequences 6"),
        ({"calibration": None}, "this conversion's: none"),
        (
            {"activation_scales": "static"},
            "its activation scales: dynamic, this conversion's: static",
        ),
    ],
)
def test_other_smoothing_is_another_conversion(
    folder: Folder, tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    convert(folder("llama"), tmp_path, options())
    with pytest.raises(ConfigError, match="came from another source or other options") as caught:
        convert(folder("llama"), tmp_path, options(**other))
    assert re.search(message, caught.value.cause)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scheme": "fp16"}, "--smooth applies to w8a8 and w6ax, not to fp16"),
        ({"scheme": "w8a16", "smooth": True}, "--smooth applies to w8a8 and w6ax"),
        ({"scheme": "w8a16", "smooth": None}, "nothing of this conversion to w8a16 uses it"),
        ({"scheme": "w6ax", "smooth": None}, "nothing of this conversion to w6ax uses it"),
        ({"smooth": True, "calibration": None}, "--smooth needs a text"),
        ({"smooth": False, "smooth_alpha": 0.5}, "--smooth-alpha was given, but nothing"),
        ({"scheme": "w6ax", "activation_scales": "static"}, "static needs w8a8, smoothed"),
        ({"smooth": False, "activation_scales": "static"}, "static needs w8a8, smoothed"),
        ({"smooth_alpha": 1.5}, "must be from 0 to 1, or search, not 1.5"),
    ],
)
def test_options_that_contradict_are_refused(given: dict[str, Any], message: str) -> None:
    scheme = given.pop("scheme", "w8a8")
    with pytest.raises(ConfigError, match=message):
        options(scheme, **given)


def test_faults_are_found_before_anything_is_written(folder: Folder, tmp_path: Path) -> None:
    text = CalibrationOptions(text=tmp_path / "absent.txt")
    with pytest.raises(ConfigError, match=r"--calibration .*absent\.txt is no file"):
        plan(folder("llama"), options(calibration=text))
    long = CalibrationOptions(text=TEXT, length=65)
    with pytest.raises(ConfigError, match="65 tokens do not fit"):
        plan(folder("llama"), options(calibration=long))
    with pytest.raises(ConfigError, match="must be at least 1, not 0"):
        CalibrationOptions(text=TEXT, sequences=0)
    assert not (tmp_path / "out").exists()


def test_a_norm_that_does_not_fit_its_type_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = make_checkpoint(tmp_path / "wide", hidden=32, heads=2, positions=64)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.gate_proj.weight"][0, 3] = 4e9
    tensors["model.layers.1.post_attention_layernorm.weight"][3] = 300.0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightError, match=r"post_attention_layernorm\.weight\[3\] is .* fp16"):
        convert(source, tmp_path / "out", options())
    assert not (tmp_path / "out").exists()


def test_the_command_line_smooths_and_says_what_it_did(
    folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(folder("llama")), str(tmp_path / "out")
    text = ["--calibration", str(TEXT), "--calibration-length", "32"]
    assert run_cli(["convert", source, out, "--scheme", "w8a8", *text]) == 0
    shown = capsys.readouterr()
    assert "tokens of" in shown.err and "not smoothed" not in shown.err
    assert run_cli(["inspect", out]) == 0
    assert "smoothquant, alpha 0.5, calibrated on" in capsys.readouterr().out
    assert run_cli(["inspect", out, "--verify"]) == 0
    plain = str(tmp_path / "plain")
    assert run_cli(["convert", source, plain, "--scheme", "w8a8"]) == 0
    assert "the weights are not smoothed; --calibration FILE" in capsys.readouterr().err
    assert run_cli(["convert", source, plain, "--calibration-length", "8"]) == 2
    assert "--calibration-length without a text" in capsys.readouterr().err
    assert run_cli(["convert", source, plain, *text, "--smooth-alpha", "half"]) == 2
    assert "'half' is neither a number from 0 to 1 nor search" in capsys.readouterr().err
