"""w6ax in the engine: activation bits chosen at run time, and rows that stay independent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.converter import ConvertOptions, convert
from flexq_ft.errors import ConfigError
from tests.runtime.conftest import devices
from tests.tools.hf_models import VOCAB, logits_of, make_model

SCHEMA = "flexq-ft/policy/1"
Converted = Callable[[str], tuple[Any, str]]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    made: dict[str, tuple[Any, str]] = {}

    def get(kind: str) -> tuple[Any, str]:
        if kind not in made:
            model = make_model(kind)
            work = tmp_path_factory.mktemp(kind)
            model.save_pretrained(work / "hf")
            convert(work / "hf", work / "ft", ConvertOptions(scheme="w6ax", dtype="fp32", tp=(1,)))
            made[kind] = (model, str(Path(work / "ft" / "1-gpu")))
        return made[kind]

    return get


def some_ids(count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(5).integers(3, VOCAB, count)]


def uniform(bits: int) -> dict[str, Any]:
    return {"schema": SCHEMA, "name": f"w6a{bits}", "default": bits, "rules": []}


def engine_on(where: str, folder: str, **options: Any) -> _native.Engine:
    dtype = "fp32" if where == "cpu" else "fp16"
    return _native.Engine(folder, device=where, dtype=dtype, **options)


@pytest.mark.parametrize("where", devices())
@pytest.mark.parametrize("kind", ["llama_gqa", "opt"])
def test_more_activation_bits_come_nearer_to_the_model(
    converted: Converted, kind: str, where: str
) -> None:
    model, folder = converted(kind)
    ids = some_ids(60)
    expected = logits_of(model, ids)

    def error(policy: dict[str, Any] | None) -> float:
        ours = engine_on(where, folder, policy=policy).forward(ids)
        return float(((ours - expected) ** 2).mean() / (expected**2).mean())

    a6, a8, a16 = (error(uniform(bits)) for bits in (6, 8, 16))
    assert 0 < a16 < a8 < a6 < 0.05
    assert a8 < error(None) < a6  # the default: 8 bits into the second linear of the block only


@pytest.mark.parametrize("bits", [6, 8, 16])
def test_batch_and_chunks_give_the_bits_of_each_alone(converted: Converted, bits: int) -> None:
    _, folder = converted("llama_gqa")
    engine = _native.Engine(folder, policy=uniform(bits))
    chunked = _native.Engine(folder, policy=uniform(bits), prefill_tokens=7)
    long, short = some_ids(43), some_ids(60)[50:]
    np.testing.assert_array_equal(chunked.forward(long), engine.forward(long))

    def outputs(prompts: list[list[int]]) -> list[list[tuple[int, float]]]:
        slots = [chunked.admit(prompt, max_tokens=12, ignore_eos=True) for prompt in prompts]
        given: dict[int, list[tuple[int, float]]] = {slot: [] for slot in slots}
        while any(len(tokens) < 12 for tokens in given.values()):
            for slot, token, logprob, _ in chunked.step():
                given[slot].append((token, logprob))
        for slot in slots:
            chunked.release(slot)
        return [given[slot] for slot in slots]

    assert outputs([long, short]) == outputs([long]) + outputs([short])


@pytest.mark.skipif(not _native.gpus(), reason="no GPU, or a build without CUDA")
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", ["llama_gqa", "llama_biases"])
def test_a_product_that_ends_with_the_activation_has_the_bits_of_both(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    # Of a trace gate and up are finished before the activation.
    model = make_model(kind, intermediate_size=4096, max_position_embeddings=512)
    model.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ft", ConvertOptions(scheme="w6ax", dtype="fp32", tp=(1,)))
    chosen = _native.explain_w6ax(m=512, n=8192, k=model.config.hidden_size, act_bits=8)
    if "wgmma rows=128 tokens=256" not in chosen.splitlines()[1]:
        pytest.skip(f"no kernel that takes the activation: {chosen}")
    floats_into_down = [{"layers": [1], "linear": "down", "act_bits": 16}]
    for policy in (uniform(6), uniform(8), {**uniform(6), "rules": floats_into_down}):
        engine = _native.Engine(
            str(tmp_path / "ft" / "1-gpu"), device="cuda", dtype=dtype, policy=policy
        )
        ids = some_ids(512)
        np.testing.assert_array_equal(engine.forward(ids), engine.trace(ids)[-1]["y"])


def test_policy_is_the_folders_unless_given(converted: Converted) -> None:
    _, folder = converted("llama_gqa")
    recorded = _native.Engine(folder).policy
    assert recorded is not None
    assert (recorded["name"], recorded["default"]) == ("flexq", 6)
    given = {
        "schema": SCHEMA,
        "name": "mine",
        "default": 8,
        "rules": [
            {"layers": "0-1", "linear": "qkv", "act_bits": 16},
            {"layers": "*", "linear": "fc2", "act_bits": 6},  # the other architecture's: allowed
            {"layers": [2], "linear": "down", "act_bits": 6},
        ],
    }
    resolved = _native.Engine(folder, policy=given).policy
    assert resolved is not None
    assert (resolved["name"], resolved["default"], len(resolved["rules"])) == ("mine", 8, 3)
    assert resolved["rules"][0] == {"layers": [0, 1], "linear": "qkv", "act_bits": 16}


@pytest.mark.parametrize("where", devices())
def test_an_engine_names_the_kernel_of_each_product(converted: Converted, where: str) -> None:
    _, folder = converted("llama_gqa")
    rules = [{"layers": [1], "linear": "o", "act_bits": 16}]
    policy = {"schema": SCHEMA, "default": 6, "rules": rules}
    lines = engine_on(where, folder, policy=policy, max_batch=3, prefill_tokens=64).gemm_choices
    if where == "cpu":
        assert lines == []
        return
    products = [line.split(": ")[0] for line in lines]
    assert len(set(products)) == len(products)
    for name, bits in [("qkv", 6), ("o", 6), ("o", 16), ("gate_up", 6), ("down", 6)]:
        for tokens in ("1 token", "3 tokens", "64 tokens"):
            of_product = [p for p in products if p.startswith(name + " [")]
            assert any(p.endswith(f"], {tokens} of {bits} bits") for p in of_product)
    assert all("weight-only" in line for line in lines if " of 16 bits: " in line)


@pytest.mark.parametrize("where", devices())
def test_last_matching_rule_decides_one_linear(converted: Converted, where: str) -> None:
    _, folder = converted("llama_gqa")
    rules = [
        {"layers": "*", "linear": "o", "act_bits": 8},
        {"layers": [1], "linear": "o", "act_bits": 16},
    ]
    mixed = engine_on(where, folder, policy={"schema": SCHEMA, "default": 6, "rules": rules})
    plain = {bits: engine_on(where, folder, policy=uniform(bits)) for bits in (6, 8, 16)}
    x = np.random.default_rng(0).standard_normal((5, 72)).astype(np.float32)
    for name, bits in [("layers.0.o", 8), ("layers.1.o", 16), ("layers.1.qkv", 6)]:
        y = mixed.run_linear(name, x)
        for other, engine in plain.items():
            assert np.array_equal(y, engine.run_linear(name, x)) == (other == bits)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rules": [{"layers": [3], "linear": "qkv", "act_bits": 8}]}, ["matches nothing"]),
        ({"rules": [{"layers": [0], "linear": "fc2", "act_bits": 8}]}, ["matches nothing"]),
        ({"rules": [{"layers": "*", "linear": "lm_head", "act_bits": 8}]}, ["lm_head"]),
        ({"default": 7}, ["7"]),
        ({"defaults": 6}, ["defaults"]),
    ],
)
def test_policy_that_does_not_fit(
    converted: Converted, change: dict[str, Any], words: list[str]
) -> None:
    _, folder = converted("llama_gqa")
    with pytest.raises(ConfigError) as raised:
        _native.Engine(folder, policy={"schema": SCHEMA, "default": 6, **change})
    assert all(word in raised.value.message for word in words), raised.value.message
