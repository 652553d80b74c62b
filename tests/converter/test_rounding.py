"""`--rounding`: rounders against plain oracles in NumPy, and the folders that they make."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file

from flexq_ft import _native
from flexq_ft.converter import CalibrationOptions, ConvertOptions, convert, open_source, verify
from flexq_ft.converter.calibration import cut_windows
from flexq_ft.converter.inspection import TensorValues, read_tensor
from flexq_ft.converter.rounding import Gptq, Rounder, ScaleSearch
from flexq_ft.errors import ConfigError, WeightError
from flexq_ft.orchestrate.cli.main import run_cli
from tests.converter.conftest import folder_bytes
from tests.converter.test_resume import StopAfter
from tests.reference.quantization import weight_int6
from tests.tools.checkpoints import make_checkpoint

Array = NDArray[np.float64]
GROUPS = [(0, 128), (128, 256), (256, 300)]
CUT = [(0, 96), (96, 224), (224, 300)]  # shards of 96 and 204 columns


@pytest.fixture
def weights() -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_t(4, (40, 300)).astype(np.float32)


@pytest.fixture
def moments() -> Array:
    """Second moments of correlated inputs with channels of unlike size."""
    rng = np.random.default_rng(8)
    mixed = rng.normal(size=(2000, 60)) @ rng.normal(size=(60, 300)) + rng.normal(size=(2000, 300))
    mixed *= rng.uniform(0.1, 4, 300)
    return mixed.T @ mixed / 2000


def values(
    codes: NDArray[np.int8], scales: NDArray[np.float16], groups: list[tuple[int, int]]
) -> Array:
    wide = np.concatenate(
        [np.repeat(scales[:, [i]].astype(float), e - b, 1) for i, (b, e) in enumerate(groups)], 1
    )
    return codes * wide


def output_error(weights: NDArray[np.float32], rounded: Array, moments: Array) -> float:
    difference = weights - rounded
    return float(np.einsum("nk,kl,nl->", difference, moments, difference))


def tried_scales(largest: np.ndarray) -> list[np.ndarray]:
    factors = [np.float32(round(1 - 0.01 * step, 2)) for step in range(31)]
    return [
        np.maximum(largest / np.float32(31) * f, np.float32(1e-5)).astype(np.float16)
        for f in factors
    ]


@pytest.mark.parametrize("with_moments", [False, True])
def test_a_searched_scale_is_the_best_of_those_tried(
    weights: NDArray[np.float32], moments: Array, with_moments: bool
) -> None:
    diagonal = moments.diagonal().astype(np.float32) if with_moments else None
    codes, scales = ScaleSearch(diagonal).round(weights, CUT)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float16
    for row in range(len(weights)):
        for index, (begin, end) in enumerate(CUT):
            group = weights[row, begin:end].astype(float)
            channel = (
                np.ones(end - begin) if diagonal is None else diagonal[begin:end].astype(float)
            )
            errors = []
            for scale in tried_scales(np.abs(weights[row, begin:end]).max()):
                nearest = np.clip(np.rint(group / float(scale)), -32, 31)
                errors.append(float(channel @ (group - nearest * float(scale)) ** 2))
            rounded = codes[row, begin:end] * float(scales[row, index])
            assert channel @ (group - rounded) ** 2 <= min(errors) * (1 + 1e-5)


def test_nothing_is_lost_to_the_nearest_code(weights: NDArray[np.float32]) -> None:
    codes, scales = ScaleSearch().round(weights, GROUPS)
    plain = values(*weight_int6(weights), GROUPS)
    errors = (weights - values(codes, scales, GROUPS)) ** 2, (weights - plain) ** 2
    for begin, end in GROUPS:
        assert np.all(errors[0][:, begin:end].sum(1) <= errors[1][:, begin:end].sum(1) * (1 + 1e-6))
    assert errors[0].sum() < 0.97 * errors[1].sum()


def gptq_oracle(
    weights: Array, moments: Array, groups: list[tuple[int, int]]
) -> tuple[Array, Array]:
    """Column by column: after each, those that remain take the values of least output error, by the
    explicit inverse of what remains of H."""
    hessian = moments + 0.01 * moments.diagonal().mean() * np.eye(len(moments))
    order = np.concatenate(
        [b + np.argsort(-moments.diagonal()[b:e], kind="stable") for b, e in groups]
    )
    rest = weights[:, order].copy()
    hessian = hessian[np.ix_(order, order)]
    codes = np.full(weights.shape, np.nan)
    scales = np.full((len(weights), len(groups)), np.nan)
    for index, (begin, end) in enumerate(groups):
        # What each column's error costs when all behind it make up for it.
        costs = [1 / np.linalg.inv(hessian[j:, j:])[0, 0] for j in range(begin, end)]
        group = rest[:, begin:end]
        least = np.full(len(weights), np.inf)
        for scale in tried_scales(np.abs(group.astype(np.float32)).max(1)):
            wide = scale.astype(float)[:, None]
            error = ((group - np.clip(np.rint(group / wide), -32, 31) * wide) ** 2) @ costs
            better = error < least
            least[better], scales[better, index] = error[better], scale[better]
        for j in range(begin, end):
            codes[:, j] = np.clip(np.rint(rest[:, j] / scales[:, index]), -32, 31)
            error = rest[:, j] - codes[:, j] * scales[:, index]
            inverse = np.linalg.inv(hessian[j:, j:])
            rest[:, j + 1 :] -= np.outer(error, inverse[0, 1:] / inverse[0, 0])
    natural = np.empty_like(codes)
    natural[:, order] = codes
    return natural, scales


@pytest.mark.parametrize("groups", [GROUPS, CUT])
def test_gptq_is_what_its_definition_says(
    weights: NDArray[np.float32], moments: Array, groups: list[tuple[int, int]]
) -> None:
    codes, scales = Gptq(torch.from_numpy(moments), linear="layers.0.qkv").round(weights, groups)
    expected, expected_scales = gptq_oracle(weights.astype(float), moments, groups)
    # A scale whose error is a tie in fp32 takes its row with it, and so does a code at a tie.
    rows = np.all(scales == expected_scales.astype(np.float16), axis=1)
    assert rows.mean() >= 0.9
    assert np.all(codes[rows] == expected[rows], axis=1).mean() >= 0.9


def test_gptq_loses_less_of_the_output(weights: NDArray[np.float32], moments: Array) -> None:
    plain = output_error(weights, values(*weight_int6(weights), GROUPS), moments)
    search = ScaleSearch(moments.diagonal().astype(np.float32)).round(weights, GROUPS)
    gptq = Gptq(torch.from_numpy(moments), linear="layers.0.qkv").round(weights, GROUPS)
    assert output_error(weights, values(*search, GROUPS), moments) < 0.97 * plain
    assert output_error(weights, values(*gptq, GROUPS), moments) < 0.5 * plain


def test_rows_do_not_depend_on_the_block(weights: NDArray[np.float32], moments: Array) -> None:
    whole = Gptq(torch.from_numpy(moments), linear="layers.0.qkv").round(weights, GROUPS)
    rounder = Gptq(torch.from_numpy(moments), linear="layers.0.qkv")
    parts = [rounder.round(weights[b : b + 16], GROUPS) for b in range(0, 40, 16)]
    for index in (0, 1):
        np.testing.assert_array_equal(np.concatenate([p[index] for p in parts]), whole[index])


def test_moments_without_a_cholesky_factor_are_named() -> None:
    rounder = Gptq(torch.tensor([[1.0, 1.5], [1.5, 1.0]]), linear="layers.3.down")
    with pytest.raises(
        ConfigError, match=r"cannot round layers\.3\.down: .* not positive definite"
    ):
        rounder.round(np.ones((1, 2), np.float32), [(0, 2)])


@pytest.mark.parametrize(
    "rounder", [ScaleSearch(), Gptq(torch.zeros(300, 300), linear="layers.0.qkv")]
)
def test_zeros_and_inputs_that_are_never_used(rounder: Rounder) -> None:
    weights = np.zeros((3, 300), np.float32)
    weights[1, :128] = np.float32(3e-6)
    codes, scales = rounder.round(weights, GROUPS)
    assert not codes.any()
    np.testing.assert_array_equal(scales, np.float16(1e-5))


TEXT = Path(__file__).parents[2] / "configs" / "texts" / "river-lock.txt"
CALIBRATION = CalibrationOptions(text=TEXT, sequences=6, length=40, device="cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GQA, a short last group, and heads that two ranks cut inside a group."""
    return make_checkpoint(
        tmp_path_factory.mktemp("rounding") / "llama",
        hidden=160,
        heads=4,
        kv_heads=2,
        head_dim=40,
        inter=264,
        tied=True,
        positions=64,
    )


def options(rounding: str, **more: Any) -> ConvertOptions:
    calibration = None if rounding == "nearest" else CALIBRATION
    return ConvertOptions(
        **{"scheme": "w6ax", "rounding": rounding, "calibration": calibration, **more}
    )


def weight(folder: Path, linear: str, rank: int = 0) -> list[TensorValues]:
    return read_tensor(folder, linear, rank=rank)


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return content


def hooked_moments(source: Path) -> dict[str, Array]:
    """X^T X of each linear's inputs, by hooks on the whole Hugging Face model."""
    opened = open_source(source)
    windows = cut_windows(TEXT.read_bytes(), opened, sequences=6, length=40).windows
    opened.close()
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    found: dict[str, Array] = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        def see(_: Any, args: Any) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).double().numpy()
            found[name] = found.get(name, 0.0) + x.T @ x

        module.register_forward_pre_hook(see)

    for index, layer in enumerate(model.model.layers):
        watch(f"layers.{index}.qkv", layer.self_attn.q_proj)
        watch(f"layers.{index}.o", layer.self_attn.o_proj)
        watch(f"layers.{index}.gate_up", layer.mlp.up_proj)
        watch(f"layers.{index}.down", layer.mlp.down_proj)
    with torch.no_grad():
        for window in windows:
            model(torch.tensor(window[None]), use_cache=False)
    return found


def source_weights(source: Path, linear: str) -> list[NDArray[np.float32]]:
    """As the folder's files hold them: q, k and v stacked, gate and up apart."""
    layer, name = linear.removeprefix("layers.").split(".")
    names = {"qkv": [("q", "k", "v")], "o": [("o",)], "gate_up": [("gate",), ("up",)]}
    stacks = names.get(name, [("down",)])
    block = "mlp" if name in ("gate_up", "down") else "self_attn"
    tensors = load_file(source / "model.safetensors")
    at = f"model.layers.{layer}.{block}."
    return [np.concatenate([tensors[f"{at}{part}_proj.weight"] for part in s]) for s in stacks]


def test_a_folder_holds_what_gptq_gives_on_the_models_own_inputs(
    source: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path, options("gptq"))
    convert(source, tmp_path / "nearest", options("nearest"))
    for linear, moments in hooked_moments(source).items():
        weights = source_weights(source, linear)
        found = weight(tmp_path / "1-gpu", linear)
        plain = weight(tmp_path / "nearest/1-gpu", linear)
        assert len(found) == len(weights)
        for wanted, made, nearest in zip(weights, found, plain, strict=True):
            groups = [(b, min(b + 128, wanted.shape[1])) for b in range(0, wanted.shape[1], 128)]
            codes, _ = Gptq(torch.from_numpy(moments), linear="layers.0.qkv").round(wanted, groups)
            assert np.mean(codes == made.codes) > 0.98  # the moments there are sums in fp32
            errors = [output_error(wanted, w.values, moments) for w in (made, nearest)]
            assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("rounding", ["gptq", "scale-search"])
def test_ranks_hold_the_integers_of_one(source: Path, tmp_path: Path, rounding: str) -> None:
    convert(source, tmp_path, options(rounding, tp=(1, 2)))
    for layer in range(2):
        whole = weight(tmp_path / "1-gpu", f"layers.{layer}.down")[0]
        parts = [weight(tmp_path / "2-gpu", f"layers.{layer}.down", rank)[0] for rank in (0, 1)]
        assert whole.codes is not None
        joined = [part.codes for part in parts if part.codes is not None]
        np.testing.assert_array_equal(np.concatenate(joined, 1), whole.codes)
        # Heads cut o inside a group: other scales, and still no worse than the nearest codes.
        parts = [weight(tmp_path / "2-gpu", f"layers.{layer}.o", rank)[0] for rank in (0, 1)]
        wanted = source_weights(source, f"layers.{layer}.o")[0]
        joined_values = np.concatenate([part.values for part in parts], 1)
        assert np.abs(joined_values - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_interrupted_conversion_ends_in_the_same_bytes(
    source: Path, tmp_path: Path, jobs: int
) -> None:
    convert(source, tmp_path / "whole", options("gptq", rotate=True))
    with pytest.raises(KeyboardInterrupt):
        convert(
            source,
            tmp_path / "out",
            options("gptq", rotate=True, jobs=jobs),
            progress=StopAfter(11),
        )
    report = convert(source, tmp_path / "out", options("gptq", rotate=True, jobs=jobs))
    assert report.folders[0].action == "resumed"
    assert "6 x 40 tokens" in report.calibration
    assert folder_bytes(tmp_path / "out/1-gpu") == folder_bytes(tmp_path / "whole/1-gpu")


def test_a_damaged_unit_is_rounded_again_alike(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path, options("gptq"))
    before = folder_bytes(tmp_path / "1-gpu")
    assert convert(source, tmp_path, options("gptq")).folders[0].action == "verified"
    path = tmp_path / "1-gpu/model.layers.1.mlp.down_proj.weight.int6.0.bin"
    path.write_bytes(path.read_bytes()[::-1])
    assert convert(source, tmp_path, options("gptq")).folders[0].action == "repaired"
    assert folder_bytes(tmp_path / "1-gpu") == before


def test_rotation_smoothing_and_rounding_stack(source: Path, tmp_path: Path) -> None:
    """On the calibration's text the engine is nearer to the float model than nearest codes are."""
    common: dict[str, Any] = {"rotate": True, "smooth": True, "policy": "w6a16", "dtype": "fp32"}
    convert(source, tmp_path, options("gptq", **common))
    convert(source, tmp_path / "plain", options("nearest", calibration=CALIBRATION, **common))
    opened = open_source(source)
    windows = cut_windows(TEXT.read_bytes(), opened, sequences=6, length=40).windows
    opened.close()
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.tensor(windows)).logits.numpy()
    errors = []
    for folder in (tmp_path, tmp_path / "plain"):
        engine = _native.Engine(str(folder / "1-gpu"))
        actual = np.stack([engine.forward(window.tolist()) for window in windows])
        errors.append(float(np.square(actual - expected).mean()))
    assert errors[0] < 0.8 * errors[1]
    manifest = manifest_of(tmp_path / "1-gpu")
    assert [entry["name"] for entry in manifest["transforms"]] == ["rotation"]
    assert manifest["quantization"]["smoothing"] is not None
    assert manifest["quantization"]["rounding"]["method"] == "gptq"


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_manifest_says_how(source: Path, tmp_path: Path, calibrated: bool) -> None:
    chosen = options("scale-search", calibration=CALIBRATION if calibrated else None)
    convert(source, tmp_path, chosen)
    manifest = manifest_of(tmp_path / "1-gpu")
    schema = json.loads((TEXT.parents[1] / "schemas/manifest.json").read_text(encoding="utf-8"))
    jsonschema.validate(manifest, schema)
    rounding = manifest["quantization"]["rounding"]
    assert rounding["method"] == "scale-search"
    if calibrated:
        text = hashlib.sha256(TEXT.read_bytes()).hexdigest()
        assert rounding["calibration"] == {"text_sha256": text, "sequences": 6, "length": 40}
    else:
        assert rounding["calibration"] is None
    assert verify(tmp_path / "1-gpu") == []
    _native.open_model_folder(str(tmp_path / "1-gpu"))
    with pytest.raises(ConfigError, match="other options") as caught:
        convert(source, tmp_path, options("nearest"))
    assert "its rounding: scale-search" in caught.value.cause
    assert "this conversion's: nearest" in caught.value.cause


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="--rounding gptq needs a text"):
        ConvertOptions(scheme="w6ax", rounding="gptq")
    with pytest.raises(
        ConfigError, match="--rounding scale-search applies to w6ax only, not to w8a16"
    ):
        ConvertOptions(scheme="w8a16", rounding="scale-search")
    with pytest.raises(ConfigError, match="unknown rounding 'best'"):
        ConvertOptions(scheme="w6ax", rounding="best")


@pytest.mark.parametrize("where", ["method", "calibration"])
def test_the_runtime_refuses_a_rounding_that_it_does_not_know(
    source: Path, tmp_path: Path, where: str
) -> None:
    convert(source, tmp_path, options("scale-search", calibration=None))
    manifest = manifest_of(tmp_path / "1-gpu")
    manifest["quantization"]["rounding"][where] = "up"
    (tmp_path / "1-gpu/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(WeightError, match=f"quantization.rounding.{where}"):
        _native.open_model_folder(str(tmp_path / "1-gpu"))


def test_the_commands_say_what_was_done(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["--calibration", str(TEXT), "--calibration-sequences", "4"]
    text += ["--calibration-length", "32", "--calibration-device", "cpu"]
    chosen = [str(source), str(tmp_path), "--scheme", "flexq", "--rotate", "--rounding", "gptq"]
    assert run_cli(["convert", *chosen]) == 2
    assert "--rounding gptq needs a text to calibrate on" in capsys.readouterr().err
    assert run_cli(["convert", *chosen, *text]) == 0
    assert "calibrated on 4 x 32 tokens" in capsys.readouterr().err
    assert run_cli(["inspect", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "rotation (heads hadamard, residual hadamard, seed 0)" in shown
    assert "gptq, calibrated on up to 4 x 32 tokens" in shown
