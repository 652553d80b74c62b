"""`flexq-ft sensitivity`: runs against NumPy hooks, the search against all subsets, the policy."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft.converter import ConvertOptions, convert
from flexq_ft.converter.policy import activation_bits, resolve_policy
from flexq_ft.errors import ConfigError, WeightError
from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.eval.linear_input import LinearInput
from flexq_ft.orchestrate.eval.policy_search import Frontier, policy_yaml
from flexq_ft.orchestrate.eval.resumed_model import ResumedModel
from flexq_ft.orchestrate.eval.sensitivity import Measured, Sensitivity
from tests.orchestrate.schemas import validate
from tests.reference import quantization as oracle
from tests.tools.checkpoints import make_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from flexq_ft.orchestrate.eval.sensitivity_probe import SensitivityProbe, mean_kl  # noqa: E402

Capture = pytest.CaptureFixture[str]

TEXT = Path(__file__).parents[2] / "configs" / "texts" / "river-lock.txt"
LAYERS = 3
USELESS = (LinearInput(1, "qkv"), LinearInput(1, "o"))
MODULES = {
    "qkv": ("q_proj", "k_proj", "v_proj"), "o": ("o_proj", "out_proj"),
    "gate_up": ("gate_proj", "up_proj"), "down": ("down_proj",), "fc1": ("fc1",), "fc2": ("fc2",),
}  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "opt"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short last group; o of layer 1 is all zeros, so its input and that of qkv are USELESS."""
    folder = tmp_path_factory.mktemp(request.param) / "hf"
    make_checkpoint(
        folder, family=request.param, hidden=192, heads=6, inter=320, positions=128, layers=LAYERS
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for name, module in model.named_modules():
        if name.endswith(("layers.1.self_attn.o_proj", "layers.1.self_attn.out_proj")):
            module.weight.data.zero_()
    model.save_pretrained(folder)
    return folder


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def rounded_by_the_oracle(
    folder: Path, ids: list[int], bits: dict[LinearInput, int], *, weights: bool
) -> Any:
    """Log-probabilities of a fresh model, whose hooks round with NumPy."""
    model = loaded(folder)
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or ".layers." not in name:
            continue
        layer = int(name.split(".layers.")[1].split(".")[0])
        linear = next(key for key, ends in MODULES.items() if name.endswith(ends))
        if weights:
            codes, scales = oracle.weight_int6(module.weight.detach().numpy())
            each = np.repeat(scales.astype(np.float32), 128, axis=1)[:, : codes.shape[1]]
            module.weight.data.copy_(torch.tensor(codes * each))
        read = bits.get(LinearInput(layer, linear))
        if read is not None:
            module.register_forward_pre_hook(lambda m, x, read=read: (numpy_rounded(x[0], read),))
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def numpy_rounded(x: Any, bits: int) -> Any:
    rows = x.reshape(-1, x.shape[-1]).numpy()
    codes, scales = oracle.activations(rows, act_bits=bits, group=128)
    k = rows.shape[1]
    return torch.tensor(codes[:, :k] * np.repeat(scales, 128, axis=1)[:, :k]).reshape(x.shape)


def window(seed: int, tokens: int = 40) -> list[int]:
    return np.random.default_rng(seed).integers(3, 200, tokens).tolist()


def test_a_resumed_run_is_the_whole_run(checkpoint: Path) -> None:
    model, ids = ResumedModel(loaded(checkpoint)), window(1)
    assert len(model.macs) == 4 * LAYERS and model.num_layers == LAYERS
    plain = model.start(ids, {})
    torch.testing.assert_close(plain, rounded_by_the_oracle(checkpoint, ids, {}, weights=False))
    for read in model.macs:
        ours = model.change(read, 6)
        whole = rounded_by_the_oracle(checkpoint, ids, {read: 6}, weights=False)
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-4)
        moved = float((ours - plain).abs().max())
        assert moved == 0 if read in USELESS else moved > 1e-3
    torch.testing.assert_close(model.change(LinearInput(0, "qkv"), 16), plain, rtol=0, atol=0)


def test_one_of_eight_bits_among_six(checkpoint: Path) -> None:
    model, ids = ResumedModel(loaded(checkpoint)), window(2)
    model.round_weights()
    six = dict.fromkeys(model.macs, 6)
    model.start(ids, six)
    for read in model.macs:
        whole = rounded_by_the_oracle(checkpoint, ids, {**six, read: 8}, weights=True)
        # A code that falls on the other side of a tie moves everything after it.
        assert float((model.change(read, 8) - whole).abs().mean()) < 0.02


def test_multiply_adds_are_the_weights_that_read_an_input(checkpoint: Path) -> None:
    macs = ResumedModel(loaded(checkpoint)).macs
    gated = LinearInput(0, "down") in macs
    first, second = ("gate_up", "down") if gated else ("fc1", "fc2")
    assert macs[LinearInput(2, "qkv")] == 3 * 192 * 192 and macs[LinearInput(2, "o")] == 192 * 192
    assert macs[LinearInput(2, first)] == (2 if gated else 1) * 192 * 320
    assert macs[LinearInput(2, second)] == 192 * 320


def test_the_divergence_is_numpys_however_small() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(30, 500))
    for size in (1e-3, 1.0):
        p, q = (
            x - np.log(np.exp(x).sum(1, keepdims=True))
            for x in (logits, logits + size * rng.normal(size=logits.shape))
        )
        expected = (np.exp(p) * (p - q)).sum(1)[:-1].mean()
        ours = mean_kl(torch.tensor(p).float(), torch.tensor(q).float())
        assert ours == pytest.approx(expected, rel=1e-3)


def test_logits_that_are_not_finite_are_an_error(checkpoint: Path) -> None:
    model = loaded(checkpoint)
    model.get_input_embeddings().weight.data[7] = math.nan
    probe = SensitivityProbe(ResumedModel(model), [[5, 6], [7, 8]], advance=lambda n, name: None)
    with pytest.raises(WeightError, match=r"float.* not finite in window 1"):
        probe.sensitivity(only=6)


INPUTS = [LinearInput(layer, linear) for layer in (0, 1) for linear in ("qkv", "o")]


def made_up(*, only: int = 6, windows: int = 5, seed: int = 0) -> Sensitivity:
    rng = np.random.default_rng(seed)
    low, high, base = rng.uniform(1, 2, windows), rng.uniform(5, 6, windows), np.full(windows, 3.0)
    costs = rng.uniform(0.1, 1, (len(INPUTS), windows))
    return Sensitivity(
        only=only,
        macs=dict(zip(INPUTS, (30, 10, 30, 10), strict=True)),
        singles={
            read: (cost if only == 6 else high - cost).tolist()
            for read, cost in zip(INPUTS, costs, strict=True)
        },
        all8=Measured(low.tolist(), (base + 0.1 * low).tolist()),
        all6=Measured(high.tolist(), (base + 0.1 * high).tolist()),
        float_losses=base.tolist(),
    )


@pytest.mark.parametrize("only", [6, 8])
def test_a_prediction_lies_between_the_ends_by_its_inputs_costs(only: int) -> None:
    known = made_up(only=only)
    costs = np.array(list(made_up(only=6).singles.values())).mean(1)
    low, high = np.mean(known.all8.kl), np.mean(known.all6.kl)
    for pattern in itertools.product((6, 8), repeat=len(INPUTS)):
        bits = dict(zip(INPUTS, pattern, strict=True))
        share = costs[np.array(pattern) == 6].sum() / costs.sum()
        assert known.predicted_kl(bits).value == pytest.approx(low + (high - low) * share)
        loss = known.predicted_ppl_loss(bits).value
        eight, six = np.mean(known.all8.losses), np.mean(known.all6.losses)
        assert loss == pytest.approx(math.exp(eight + (six - eight) * share) - math.exp(3))
    assert known.a8_share(dict(zip(INPUTS, (8, 6, 6, 8), strict=True))) == 0.5


def test_standard_errors_are_over_windows() -> None:
    known = made_up()
    kl = np.array(known.singles[INPUTS[2]])
    error = known.single(INPUTS[2]).standard_error
    assert error == pytest.approx(kl.std(ddof=1) / math.sqrt(5))
    six = known.predicted_kl(dict.fromkeys(INPUTS, 6)).standard_error
    assert six == pytest.approx(np.std(known.all6.kl, ddof=1) / math.sqrt(5))
    assert made_up(windows=1).single(INPUTS[0]).standard_error is None


def test_a_budget_of_perplexity_is_met_just_so() -> None:
    known = made_up()
    frontier = Frontier(known.macs, known.shares())
    losses = {}
    for pattern in itertools.product((6, 8), repeat=len(INPUTS)):
        bits = dict(zip(INPUTS, pattern, strict=True))
        losses[pattern] = known.predicted_ppl_loss(bits).value, known.a8_share(bits)
    for budget in (6.0, 8.0, 12.0, 20.0):
        saved = known.saved_share_for(budget)
        assert saved is not None
        found = frontier.saving(saved)
        cheapest = min(share for loss, share in losses.values() if loss <= budget)
        assert known.predicted_ppl_loss(found).value <= budget
        assert known.a8_share(found) == pytest.approx(cheapest)
    assert known.saved_share_for(0.01) is None


def test_costs_that_are_nothing_have_no_scale() -> None:
    known = made_up()
    nothing = {read: [0.0] * 5 for read in INPUTS}
    with pytest.raises(ConfigError, match="cannot be told from 0"):
        Sensitivity(**{**known.__dict__, "singles": nothing}).shares()


@pytest.mark.parametrize("seed", range(5))
def test_the_frontier_is_the_best_of_all_subsets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = [LinearInput(layer, "o") for layer in range(9)]
    macs = dict(zip(inputs, (6 * rng.integers(1, 9, 9)).tolist(), strict=True))
    gains = dict(zip(inputs, rng.uniform(-0.1, 1, 9).tolist(), strict=True))
    total = sum(macs.values())
    frontier = Frontier(macs, gains)
    subsets = [
        (sum(macs[r] for r in chosen), sum(gains[r] for r in chosen))
        for size in range(10)
        for chosen in itertools.combinations(inputs, size)
    ]
    for share in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
        bits = frontier.within(share)
        chosen = [read for read in inputs if bits[read] == 8]
        assert sum(macs[r] for r in chosen) <= share * total + 1e-9
        best = max(gain for cost, gain in subsets if cost <= share * total + 1e-9)
        assert sum(gains[r] for r in chosen) == pytest.approx(best)
    needed = 0.6 * sum(gain for gain in gains.values() if gain > 0)
    bits = frontier.saving(needed)
    cost = sum(macs[read] for read in inputs if bits[read] == 8)
    assert cost == min(cost for cost, gain in subsets if gain >= needed)


def test_a_share_made_by_a_division_is_met() -> None:
    inputs = [LinearInput(layer, "o") for layer in range(49)]
    frontier = Frontier(dict.fromkeys(inputs, 7), dict.fromkeys(inputs, 1 / 49))
    for count in range(50):
        assert list(frontier.within(count / 49).values()).count(8) == count


def test_a_policy_file_reads_back(tmp_path: Path) -> None:
    inputs = [LinearInput(i, linear) for i in range(4) for linear in ("qkv", "o", "fc1", "fc2")]
    bits = {r: 8 if r.linear == "fc2" or r in (inputs[0], inputs[8]) else 6 for r in inputs}
    for given in (bits, dict.fromkeys(inputs, 6), dict.fromkeys(inputs, 8)):
        file = tmp_path / "found.yaml"
        file.write_text(policy_yaml(given, comments=["how it was", "found"]))
        assert file.read_text().startswith("# how it was\n# found\nschema: flexq-ft/policy/1\n")
        policy = resolve_policy(file, num_layers=4, linears=("qkv", "o", "fc1", "fc2"))
        assert {r: activation_bits(policy, r.layer, r.linear) for r in inputs} == given


def test_bits_of_a_policy_are_those_of_the_last_rule_that_matches() -> None:
    rules = [
        {"layers": "1-3", "linear": "down", "act_bits": 8},
        {"layers": [2], "linear": "down", "act_bits": 16},
        {"layers": "*", "linear": "o", "act_bits": 8},
    ]
    policy = {"schema": "flexq-ft/policy/1", "default": 6, "rules": rules}
    linears = ("qkv", "o", "gate_up", "down")
    resolved = resolve_policy(policy, num_layers=5, linears=linears)
    found = [[activation_bits(resolved, layer, name) for name in linears] for layer in range(5)]
    down = [6, 8, 16, 8, 6]
    assert found == [[6, 8, 6, bits] for bits in down]


def measured(capsys: Capture, model: Path, *more: str, window: int | None = 64) -> dict[str, Any]:
    text = ["--calibration", str(TEXT), "--tokens", "256", "--device", "cpu"]
    cut = [] if window is None else ["--window", str(window)]
    assert run_cli(["sensitivity", str(model), *text, *cut, *more, "--json", "-q"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    validate(document, "sensitivity.json")
    return document


@pytest.mark.parametrize("only", ["6", "8"])
def test_the_policy_that_is_written_loses_what_was_measured(
    checkpoint: Path, capsys: Capture, tmp_path: Path, only: str
) -> None:
    file, plot = tmp_path / "half.yaml", tmp_path / "half.png"
    args = ["--max-a8", "50%", "--policy-out", str(file), "--only", only]
    result = measured(capsys, checkpoint, *args, "--plot", str(plot))["results"]
    assert plot.stat().st_size > 10_000
    policies = {one["name"]: one for one in result["policies"]}
    eight, six, found = (policies[n] for n in ("w6a8", "w6a6", "found, --max-a8 50%"))
    assert found["a8_share"] <= 0.5 and policies["flexq"]["a8_share"] < 0.5
    assert eight["kl"]["value"] < found["kl"]["value"] < six["kl"]["value"]
    error = abs(found["predicted_kl"]["value"] - found["kl"]["value"])
    assert error < 0.3 * found["kl"]["value"]
    assert sum(one["share"] for one in result["inputs"]) == pytest.approx(1)
    if only == "6":
        costs = {(o["layer"], o["linear"]): o["kl"]["value"] for o in result["inputs"]}
        for read in USELESS:
            assert costs[read.layer, read.linear] == 0
            assert read.layer not in found["a8_layers"][read.linear]

    # The runtime, on other windows of the text: as far from fp16 as was measured here.
    text = ["--text", str(TEXT), "--window", "64", "--max-windows", "6"]
    runtime = ["--policy", str(file), "--dtype", "fp32", "--cache-dir", str(tmp_path)]
    assert run_cli(["eval", "kl", str(checkpoint), *text, *runtime, "--json", "-q"]) == 0
    ran = json.loads(capsys.readouterr().out)
    assert ran["results"]["kl"]["mean"] == pytest.approx(found["kl"]["value"], rel=0.3)
    layers = {r["linear"]: r["layers"] for r in ran["config"]["policy"]["rules"]}
    chosen = {name: where for name, where in found["a8_layers"].items() if where}
    assert {n: [*range(LAYERS)] if w == "*" else w for n, w in layers.items()} == chosen
    convert(checkpoint, tmp_path / "out", ConvertOptions(scheme="w6ax", policy=file))


def test_another_budget_costs_no_measurement(
    checkpoint: Path, capsys: Capture, tmp_path: Path
) -> None:
    first, files = tmp_path / "first.json", [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    args = ["--max-a8", "60%", "--policy-out"]
    measured(capsys, checkpoint, *args, str(files[0]), "--save", str(first))
    again = ["sensitivity", str(checkpoint), "--from", str(first), "--json", "-q"]
    assert run_cli([*again, *args, str(files[1])]) == 0
    document = json.loads(capsys.readouterr().out)
    validate(document, "sensitivity.json")
    ours, theirs = (d["results"] for d in (document, json.loads(first.read_text())))
    assert files[0].read_text() == files[1].read_text()
    assert ours["policies"][-1]["kl"] is None and theirs["policies"][-1]["kl"]["value"] > 0
    assert ours["policies"][:-1] == theirs["policies"][:-1]
    assert {**ours, "policies": 0} == {**theirs, "policies": 0}
    assert document["config"]["tokens"] is document["config"]["dtype"] is None
    assert run_cli([*again, "--only", "8", "--tokens", "64"]) == 2
    assert "--tokens, --only cannot be given with --from" in capsys.readouterr().out

    for text, named in (("{}", "cannot be read"), (first.read_text(), "is of another model")):
        first.write_text(text.replace(str(checkpoint), "elsewhere"))
        assert run_cli(["sensitivity", str(checkpoint), "--from", str(first)]) == 2
        assert named in capsys.readouterr().err


def test_a_budget_that_cannot_be_met_keeps_what_was_measured(
    checkpoint: Path, capsys: Capture, tmp_path: Path
) -> None:
    first, file = tmp_path / "first.json", tmp_path / "none.yaml"
    measured(capsys, checkpoint, "--save", str(first))
    document = json.loads(first.read_text())
    for one in document["results"]["policies"]:  # as if 6-bit weights alone lost a nat
        base = document["results"]["float_window_losses"]
        one["window_losses"] = [x + 1 for x in base]
    first.write_text(json.dumps(document))
    args = ["--from", str(first), "--max-ppl", "0.05", "--policy-out", str(file), "--json", "-q"]
    assert run_cli(["sensitivity", str(checkpoint), *args]) == 1
    document = json.loads(capsys.readouterr().out)
    assert "predicted to lose at most 0.05 of perplexity" in document["warnings"][0]
    assert len(document["results"]["policies"]) == 4 and not file.exists()


def test_without_a_budget_the_policy_has_flexqs_share(checkpoint: Path, capsys: Capture) -> None:
    result = measured(capsys, checkpoint, window=None)["results"]
    flexq, found = result["policies"][2:]
    assert flexq["name"] == "flexq" and found["a8_share"] <= flexq["a8_share"] + 1e-9
    assert found["predicted_kl"]["value"] <= flexq["predicted_kl"]["value"]
    assert result["tokens"] == 256 and "FlexQ's choice" in result["verdict"]
    assert result["window"] == 128  # the model has no more positions


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--max-a8", "50%", "--max-ppl", "1"], "two budgets"),
        (["--from", str(TEXT)], "one of them"),
        (["--max-a8", "150%"], "no share such as 25%"),
        (["--tokens", "1M"], "more than the"),
        (["--plot", "x.txt"], "does not end in one of .png"),
        (["--plot", "absent/x.png"], "absent/x.png cannot be written"),
        (["--policy-out", "absent/p.yaml"], "there is no folder absent"),
        (["--window", "512"], "does not fit the model"),
    ],
)
def test_what_cannot_be_done_is_named(
    checkpoint: Path, capsys: Capture, args: list[str], named: str
) -> None:
    text = ["--calibration", str(TEXT), "--tokens", "128", "--window", "64"]
    assert run_cli(["sensitivity", str(checkpoint), *text, *args, "-q"]) == 2
    assert named in capsys.readouterr().err


def test_only_a_checkpoint_can_be_measured(capsys: Capture, tmp_path: Path) -> None:
    assert run_cli(["sensitivity", str(tmp_path), "--calibration", str(TEXT)]) == 2
    assert "sensitivity needs a Hugging Face folder" in capsys.readouterr().err
    layer = torch.nn.ModuleDict({"other": torch.nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=r"layers\.0\.other is none of the linears"):
        ResumedModel(torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])}))
