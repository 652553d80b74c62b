"""`eval ppl --simulate`: the grids against NumPy, whole models against the runtime, bad options."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.cli.main import run_cli
from tests.orchestrate.schemas import validate
from tests.reference import quantization as oracle
from tests.tools.checkpoints import make_checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from flexq_ft.orchestrate.eval.fake_quant import (  # noqa: E402
    FakeFormat,
    quantize_model,
    round_activation,
    round_weight,
)

Capture = pytest.CaptureFixture[str]

TEXT = Path(__file__).parents[2] / "configs" / "texts" / "river-lock.txt"
GROUPS = ["--w-group-size", "128", "--a-group-size", "128"]
# scheme of the runtime -> the same format of the simulation
FORMATS = {
    "fp16": [],
    "w8a16": ["--wbits", "8"],
    "w8a8": ["--wbits", "8", "--abits", "8"],
    "w6a16": ["--wbits", "6", *GROUPS],
    "w6a8": ["--wbits", "6", "--abits", "8", *GROUPS],
    "w6a6": ["--wbits", "6", "--abits", "6", *GROUPS],
    "flexq": ["--wbits", "6", "--abits", "6", *GROUPS, "--flex-linear-quant"],
}


def values(rows: int, k: int, seed: int = 0) -> Any:
    x = np.random.default_rng(seed).normal(size=(rows, k)).astype(np.float32)
    x[0] = 0
    x[1, : k // 2] *= 100
    return x


@pytest.mark.parametrize("k", [64, 128, 300, 384])
def test_grids_of_the_runtime_are_the_oracles(k: int) -> None:
    w, x = values(7, k), values(5, k, seed=1)
    codes, scales = oracle.weight_int6(w)
    each = np.repeat(scales.astype(np.float32), 128, axis=1)[:, :k]
    ours = round_weight(torch.tensor(w), bits=6, group=128, symmetric=True).numpy()
    np.testing.assert_array_equal(ours, codes * each)

    codes, scales = oracle.weight_int8(w)
    ours = round_weight(torch.tensor(w), bits=8, group=None, symmetric=True).numpy()
    np.testing.assert_array_equal(ours, codes * scales[:, None])

    for bits, group in ((6, 128), (8, 128), (8, k)):
        codes, scales = oracle.activations(x, act_bits=bits, group=group)
        each = np.repeat(scales, group, axis=1)[:, :k]
        given = None if group == k else group
        ours = round_activation(torch.tensor(x), bits=bits, group=given, symmetric=True).numpy()
        np.testing.assert_array_equal(ours, codes[:, :k] * each)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_asymmetric_grids_reach_from_minimum_to_maximum(bits: int) -> None:
    x = np.random.default_rng(3).uniform(-1, 5, size=(4, 6, 100)).astype(np.float32)
    ours = round_activation(torch.tensor(x), bits=bits, group=32, symmetric=False).numpy()
    for start in range(0, 100, 32):  # the last group has four values
        group, rounded = x[..., start : start + 32], ours[..., start : start + 32]
        low, high = group.min(-1, keepdims=True), group.max(-1, keepdims=True)
        step = (high - low) / (2**bits - 1)
        # The zero point is a whole number of steps, which shifts the grid by up to half a step.
        assert np.all(np.abs(rounded - group) <= step * 1.001)
        codes = rounded / step
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
        for token in np.ndindex(rounded.shape[:-1]):
            assert len(np.unique(rounded[token])) <= 2**bits


def test_sixteen_bits_are_left_alone_and_the_type_is_kept() -> None:
    x = torch.tensor(values(3, 40)).half()
    assert round_weight(x, bits=16, group=8, symmetric=True) is x
    assert round_activation(x, bits=16, group=None, symmetric=False) is x
    assert round_activation(x, bits=4, group=16, symmetric=True).dtype == torch.float16


def test_values_that_are_not_finite_stay_so() -> None:
    x = torch.tensor(values(2, 256))
    x[0, 3], x[1, 200] = float("nan"), float("inf")
    y = round_activation(x, bits=6, group=128, symmetric=True)
    assert y[0, :128].isnan().all() and y[0, 128:].isfinite().all()
    assert y[1, 128:].isnan().all() and y[1, :128].isfinite().all()


def test_only_layers_are_quantised_and_the_sensitive_ones_with_8_bits(tmp_path: Path) -> None:
    import transformers

    folder = make_checkpoint(tmp_path, hidden=64, heads=2, inter=96, layers=1, tied=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    form = FakeFormat(wbits=6, abits=6, symmetric=True, flex_linear_quant=True)
    assert quantize_model(model, form) == 7
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert len(changed) == 7 and all(".layers.0." in name for name in changed)

    inputs: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):  # a later hook sees what the earlier one gave
            module.register_forward_pre_hook(lambda m, x, name=name: inputs.update({name: x[0]}))
    with torch.inference_mode():
        model(torch.tensor([[3, 5, 7, 9]]))
    six_bit = {
        name
        for name, x in inputs.items()
        if torch.allclose(round_activation(x, bits=6, group=None, symmetric=True), x, rtol=1e-5)
    }
    assert len(inputs) == 8
    assert set(inputs) - six_bit == {"lm_head", "model.layers.0.mlp.down_proj"}


def evaluated(capsys: Capture, *args: str) -> dict[str, Any]:
    text = ["--text", str(TEXT), "--window", "128", "--max-windows", "6"]
    assert run_cli(["eval", "ppl", *args, *text, "--json", "-q"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    validate(document, "eval-ppl.json")
    return document


@pytest.fixture(scope="module", params=["llama", "opt"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short last group (hidden 192); random weights, so perplexities are no more than alike."""
    folder = tmp_path_factory.mktemp(request.param) / "hf"
    return make_checkpoint(
        folder, family=request.param, hidden=192, heads=6, inter=320, positions=128, dtype="float16"
    )


@pytest.mark.parametrize("scheme", FORMATS)
def test_at_the_runtimes_formats_the_losses_are_the_runtimes(
    checkpoint: Path, capsys: Capture, tmp_path: Path, scheme: str
) -> None:
    cache = ["--cache-dir", str(tmp_path), "--dtype", "fp32"]
    runtime = evaluated(capsys, str(checkpoint), "--scheme", scheme, *cache)
    simulate = ["--simulate", "--symmetric", "--device", "cpu", *FORMATS[scheme]]
    simulated = evaluated(capsys, str(checkpoint), *simulate)
    assert runtime["config"]["simulation"] is None
    assert simulated["config"]["simulation"]["symmetric"] is True
    ratio = simulated["results"]["perplexity"] / runtime["results"]["perplexity"]
    is_exact = scheme in ("fp16", "w8a16", "w6a16")
    assert ratio == pytest.approx(1, abs=1e-4 if is_exact else 3e-3)


def test_a_policy_is_simulated_as_the_runtime_reads_it(
    checkpoint: Path, capsys: Capture, tmp_path: Path
) -> None:
    simulate = ["--simulate", "--device", "cpu"]
    flexq = evaluated(capsys, str(checkpoint), *simulate, "--policy", "flexq")
    flags = evaluated(capsys, str(checkpoint), *simulate, "--symmetric", *FORMATS["flexq"])
    assert flexq["results"]["window_losses"] == flags["results"]["window_losses"]
    file = tmp_path / "mixed.yaml"
    file.write_text(
        "schema: flexq-ft/policy/1\ndefault: 6\nrules:\n"
        "  - {layers: [0], linear: qkv, act_bits: 16}\n"
        "  - {layers: 1-1, linear: down, act_bits: 8}\n"
    )
    simulated = evaluated(capsys, str(checkpoint), *simulate, "--policy", str(file))
    assert simulated["config"]["simulation"]["policy"] == str(file)
    cache = ["--cache-dir", str(tmp_path), "--dtype", "fp32"]
    runtime = evaluated(capsys, str(checkpoint), "--policy", str(file), *cache)
    ratio = simulated["results"]["perplexity"] / runtime["results"]["perplexity"]
    assert ratio == pytest.approx(1, abs=3e-3)
    assert simulated["results"]["loss"] != flexq["results"]["loss"]


def test_fewer_bits_cost_more(checkpoint: Path, capsys: Capture) -> None:
    def loss(bits: int) -> float:
        args = ["--simulate", "--wbits", str(bits), "--w-group-size", "64"]
        return float(evaluated(capsys, str(checkpoint), *args)["results"]["loss"])

    fine = loss(16)
    assert abs(loss(8) - fine) < abs(loss(3) - fine)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--simulate", "--scheme", "w6ax"], "--scheme cannot be given with --simulate"),
        (["--simulate", "--tp", "2"], "--tp cannot be given with --simulate"),
        (["--wbits", "6"], "--wbits cannot be given without --simulate"),
        (["--simulate", "--abits", "8", "--flex-linear-quant"], "goes with --abits 6"),
        (["--simulate", "--wbits", "1"], "--wbits"),
        (["--simulate", "--wbits", "6", "--policy", "flexq"], "cannot be given with --simulate --"),
        (["--simulate", "--policy", "flexqq"], "neither a built-in name nor a file"),
    ],
)
def test_options_that_contradict_are_refused(
    checkpoint: Path, capsys: Capture, args: list[str], named: str
) -> None:
    assert run_cli(["eval", "ppl", str(checkpoint), "--text", str(TEXT), *args]) == 2
    assert named in capsys.readouterr().err


def test_what_cannot_be_simulated_is_named(
    checkpoint: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["--text", str(TEXT), "--simulate"]
    assert run_cli(["eval", "ppl", str(tmp_path), *args]) == 2
    assert "holds no config.json" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no linears in layers"):
        quantize_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), FakeFormat())
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert run_cli(["eval", "ppl", str(checkpoint), *args]) == 2
    assert "pip install torch transformers" in capsys.readouterr().err
