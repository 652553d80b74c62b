"""Decode steps as one kernel: what the engine gives with it, beside teacher forcing, which runs op
by op, and beside itself."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.converter import ConvertOptions, convert
from flexq_ft.errors import ConfigError, WeightError
from tests.reference.divergence import GREEDY_COMPARABLE
from tests.tools.checkpoints import make_checkpoint
from tests.tools.engines import generate
from tests.tools.hf_models import make_model, write_folder

pytestmark = pytest.mark.skipif(
    not any(gpu["compute_capability"] == "9.0" for gpu in _native.gpus()),
    reason="no GPU of compute capability 9.0, or a build without CUDA",
)

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"hidden": 256, "heads": 4, "kv_heads": 2, "inter": 768, "layers": 3},
    "opt": {"family": "opt", "hidden": 256, "heads": 4, "inter": 1024},
}
# Of log-probabilities, whose logits are about as wide as 1: a rounding that falls the other way
# moves what is quantised by a whole code.
LIMITS = {"fp16": 0.02, "bf16": 0.15, "w8a16": 0.02, "w8a8": 0.1, "w6ax": 0.4}
SCHEMES = list(LIMITS)
PROMPTS = [[17], [5, 6, 7, 200, 31], list(range(40, 75)), [9, 8] * 30]
GREEDY: dict[str, Any] = {"ignore_eos": True}
SAMPLED: dict[str, Any] = {
    "temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 11, "ignore_eos": True,
}  # fmt: skip

Make = Callable[..., Any]


@pytest.fixture(scope="module", params=list(FAMILIES))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """engine(scheme, **options), with step_kernel="on" unless it is given."""
    work = tmp_path_factory.mktemp(request.param)
    source = make_checkpoint(work / "hf", tokenizer=False, **FAMILIES[request.param])
    folders: dict[str, str] = {}

    def make(scheme: str, **options: Any) -> Any:
        dtype = "bf16" if scheme == "bf16" else "fp16"
        if scheme not in folders:
            convert(source, work / scheme, ConvertOptions(scheme=scheme, dtype=dtype))
            folders[scheme] = str(work / scheme / "1-gpu")
        options = {"step_kernel": "on", "dtype": dtype, **options}
        return _native.Engine(folders[scheme], device="cuda", **options)

    return make


def tokens_of(pairs: list[tuple[int, float]]) -> list[int]:
    return [token for token, _ in pairs]


def assert_teacher_forced(
    engine: Any, prompt: list[int], pairs: list[tuple[int, float]], limit: float
) -> float:
    """Each token's log-probability is what `score`, op by op, gives it at the same prefix; returns
    the largest difference."""
    scored = engine.score(prompt + tokens_of(pairs))[0][len(prompt) - 1 :]
    error = np.abs(scored - np.array([logprob for _, logprob in pairs], np.float32))
    assert float(error.max()) <= limit, f"token {int(error.argmax())}: {float(error.max()):.4f}"
    return float(error.max())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_log_probabilities_are_those_of_teacher_forcing(
    engine: Make, scheme: str, params: dict[str, Any], measured: Callable[[str], None]
) -> None:
    """One sequence, and four that end at different times."""
    gpu = engine(scheme, max_batch=4)
    assert gpu.step_note == "decode steps of up to 4 sequences run as one kernel"
    each = [{**params, "max_tokens": most} for most in (60, 9, 33, 70)]
    largest = 0.0
    for prompts, own in ((PROMPTS[:1], each[:1]), (PROMPTS, each)):
        out = generate(gpu, prompts, own, logprobs=True)
        for prompt, pairs, asked in zip(prompts, out, own, strict=True):
            assert len(pairs) == asked["max_tokens"]
            error = assert_teacher_forced(gpu, prompt, pairs, LIMITS[scheme])
            largest = max(largest, error)
    measured(
        f"step kernel, {gpu.config.architecture} {scheme}: log-probabilities within"
        f" {largest:.1e} of those op by op"
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_greedy_tokens_are_those_of_the_ops(engine: Make, scheme: str) -> None:
    """Up to a tie: where tokens part, the two best are within the limit of each other."""
    kernel, ops = engine(scheme), engine(scheme, step_kernel="off")
    limit = LIMITS[scheme] if scheme in GREEDY_COMPARABLE else 2 * LIMITS[scheme]
    for prompt in PROMPTS:
        got, want = (
            generate(e, [prompt], {**GREEDY, "max_tokens": 48}, logprobs=True)[0]
            for e in (kernel, ops)
        )
        for i, ((token, logprob), (other, its)) in enumerate(zip(got, want, strict=True)):
            if token == other:
                assert abs(logprob - its) <= limit, f"token {i}"
                continue
            logits = ops.forward(prompt + tokens_of(want)[:i])[-1]
            assert abs(logits[other] - logits[token]) <= 2 * limit, f"token {i}"
            break


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_sequence_ends_at_max_len(engine: Make, scheme: str) -> None:
    gpu = engine(scheme, max_len=50, max_batch=2)
    slots = [gpu.admit(prompt, max_tokens=1000, ignore_eos=True) for prompt in ([3], [4, 5, 6])]
    pairs: dict[int, list[tuple[int, float]]] = {slot: [] for slot in slots}
    ends = {}
    while len(ends) < 2:
        for slot, token, logprob, finish in gpu.step():
            pairs[slot].append((token, logprob))
            if finish is not None:
                ends[slot] = finish
    assert list(ends.values()) == ["length", "length"]
    assert [len(pairs[slot]) for slot in slots] == [49, 47]
    assert_teacher_forced(gpu, [4, 5, 6], pairs[slots[1]], LIMITS[scheme])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_hundred_requests_give_the_same_bits(engine: Make, scheme: str) -> None:
    gpu = engine(scheme)
    params = {**SAMPLED, "max_tokens": 32}
    first = generate(gpu, [PROMPTS[1]], params, logprobs=True)
    for i in range(1, 100):
        if i % 25 == 0:
            gpu.drop_graphs()
        assert generate(gpu, [PROMPTS[1]], params, logprobs=True) == first, f"request {i}"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_graphs_and_eager_steps_give_the_same_bits(engine: Make, scheme: str) -> None:
    params = {**SAMPLED, "max_tokens": 40}
    made = [
        generate(engine(scheme, graphs=graphs), PROMPTS, params, logprobs=True)
        for graphs in (True, False)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rows", [2, 3, 5, 8])
def test_a_row_of_a_batch_is_the_row_alone(engine: Make, scheme: str, rows: int) -> None:
    """To the last bit, where prompts are prefilled alike (one token); slots are used again."""
    gpu = engine(scheme, max_batch=rows)
    prompts = [[20 + token] for token in range(rows + 3)]
    each = [{**GREEDY, "max_tokens": 20 + 3 * i} for i in range(len(prompts))]
    together = generate(gpu, prompts, each, logprobs=True)
    for prompt, params, want in zip(prompts, each, together, strict=True):
        assert generate(gpu, [prompt], params, logprobs=True)[0] == want


@pytest.mark.parametrize(("scheme", "most"), [("fp16", 2), ("w8a16", 2), ("w8a8", 2), ("w6ax", 4)])
def test_auto_takes_the_kernel_for_few_sequences(engine: Make, scheme: str, most: int) -> None:
    """So many of a small model, where blocks come in pairs."""
    auto, on, off = (
        engine(scheme, max_batch=8, step_kernel=choice) for choice in ("auto", "on", "off")
    )
    note = f"decode steps of up to {most} sequences run as one kernel, larger ones op by op"
    assert auto.step_note == note
    assert off.step_note == "decode steps run op by op: step_kernel is off"
    params = {**GREEDY, "max_tokens": 24}
    few, many = ([[17 + i] for i in range(count)] for count in (most, most + 1))
    assert generate(auto, few, params, logprobs=True) == generate(on, few, params, logprobs=True)
    assert generate(auto, many, params, logprobs=True) == generate(off, many, params, logprobs=True)


@pytest.mark.parametrize(
    ("shape", "scheme", "most"),
    [("llama-7b", "w6ax", 4), ("llama-13b", "w6ax", 2), ("llama-13b", "w8a8", 2)],
)
def test_auto_leaves_three_sequences_of_large_layers_to_the_ops(
    tmp_path: Path, repo_root: Path, shape: str, scheme: str, most: int
) -> None:
    ini = (repo_root / f"configs/models/{shape}.ini").read_text()
    (tmp_path / "one.ini").write_text(re.sub(r"num_layer = \d+", "num_layer = 1", ini))
    made = _native.Engine(
        str(tmp_path / "one.ini"), scheme=scheme, dtype="fp16", device="cuda", max_batch=8,
        max_len=256, synthetic_weights=True,
    )  # fmt: skip
    assert made.step_note.startswith(f"decode steps of up to {most} sequences run as one kernel")


def test_more_sequences_than_it_takes_run_op_by_op(engine: Make) -> None:
    on, off = (engine("fp16", max_batch=16, step_kernel=choice) for choice in ("on", "off"))
    note = "decode steps of up to 8 sequences run as one kernel, larger ones op by op"
    assert on.step_note == note
    params = {**GREEDY, "max_tokens": 12}
    prompts = [[token] for token in range(20, 32)]
    assert generate(on, prompts, params, logprobs=True) == generate(
        off, prompts, params, logprobs=True
    )


def test_a_profile_is_op_by_op(engine: Make) -> None:
    names = {node["name"] for node in engine("w8a16").step_profile(1, 20)}
    assert {"qkv", "o", "lm_head", "sample"} <= names


def test_a_model_that_it_does_not_take_is_said(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", tokenizer=False, hidden=128, heads=4)
    convert(tmp_path / "hf", tmp_path / "m", ConvertOptions(scheme="fp16", dtype="fp16"))
    folder = str(tmp_path / "m" / "1-gpu")
    note = _native.Engine(folder, device="cuda").step_note
    assert note == "decode steps run op by op: heads of 32 columns, neither 64 nor 128"
    with pytest.raises(ConfigError, match="heads of 32 columns") as raised:
        _native.Engine(folder, device="cuda", step_kernel="on")
    assert "--step-kernel auto" in raised.value.hint


@pytest.mark.parametrize(("lm_head", "bits"), [("w8", 8), ("w6", 6)])
def test_a_quantised_head_runs_op_by_op_and_is_said(
    tmp_path: Path, lm_head: str, bits: int
) -> None:
    make_checkpoint(tmp_path / "hf", tokenizer=False, **FAMILIES["llama"])
    convert(tmp_path / "hf", tmp_path / "m", ConvertOptions(scheme="w6ax", lm_head=lm_head))
    folder = str(tmp_path / "m" / "1-gpu")
    engine = _native.Engine(folder, device="cuda")
    why = f"the lm_head has weights of {bits} bits"
    assert engine.step_note.startswith(f"decode steps run op by op: {why}")
    pairs = generate(engine, PROMPTS, {**GREEDY, "max_tokens": 12}, logprobs=True)
    for prompt, given in zip(PROMPTS, pairs, strict=True):
        assert_teacher_forced(engine, prompt, given, LIMITS["w6ax"])
    with pytest.raises(ConfigError, match=why):
        _native.Engine(folder, device="cuda", step_kernel="on")


# A fault takes the GPU's context with it, so the command line is a process of its own, and what it
# makes is an engine whose step kernel withholds what an op has computed.
FAULTY = """
import sys
from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.engine.single_rank import SingleRank

make = SingleRank.__init__

def make_faulty(self, *args, **options):
    make(self, *args, **options)
    self.engine._withhold_step_op(op=7, patience_ms=50)  # the o product of layer 1

SingleRank.__init__ = make_faulty
sys.exit(run_cli(sys.argv[1:]))
"""
# Whose wait ended first: a consumer's of the results, or a copying warp's of a free stage.
WAITED = (
    r"error: the step kernel waited more than 50 ms in (\w+ of layer \d|lm_head), "
    r"thread block \d+, for (the results of other blocks|its own weights)"
)


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_a_wait_without_end_ends_the_command_with_exit_4(tmp_path: Path, choice: str) -> None:
    make_checkpoint(tmp_path / "hf", tokenizer=False, **FAMILIES["llama"])
    convert(tmp_path / "hf", tmp_path / "m", ConvertOptions(scheme="w6ax"))
    arguments = ["run", str(tmp_path / "m"), "5,6,7", "--ids", "--device", "cuda", "--ignore-eos"]
    arguments += ["--max-tokens", "8", "--step-kernel", choice]
    done = subprocess.run(
        [sys.executable, "-c", FAULTY, *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert re.search(WAITED, " ".join(done.stderr.split())), done.stderr
    assert "--step-kernel off" in done.stderr


def test_a_row_that_is_not_finite_spares_the_others(tmp_path: Path) -> None:
    model = make_model("llama_gqa", hidden_size=256, num_attention_heads=4, intermediate_size=512)
    model.model.embed_tokens.weight.data[78] = float("inf")
    folder = str(write_folder(model, tmp_path))
    gpu = _native.Engine(folder, device="cuda", dtype="fp16", max_batch=2, step_kernel="on")
    params = {**GREEDY, "max_tokens": 12}
    want = generate(gpu, [[9]], params, logprobs=True)[0]
    good = gpu.admit([9], **params)
    bad = gpu.admit([78], max_tokens=3)
    with pytest.raises(WeightError, match=f"slot {bad}"):
        gpu.step()
    gpu.release(bad)
    got = [(token, logprob) for _ in want for _, token, logprob, _ in gpu.step()]
    gpu.release(good)
    assert got == want
