"""TP 1, 2, 3 and 4 under MPI: the same model, whatever the number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from tests.e2e.conftest import Model
from tests.e2e.test_quantized_models import act_bits, replay
from tests.reference.divergence import (
    GREEDY_COMPARABLE,
    TINY_LOOSE,
    Divergence,
    assert_greedy_equal_or_tied,
)
from tests.tools.linears import layer_weights
from tests.tools.mpi import mpi_command

RUNNER = Path(__file__).parent / "tp_run.py"
STEPS = 48


def run_ranks(
    folder: Path, tp: int, windows: list[list[int]], work: Path, *, trace: bool = False
) -> list[Any]:
    """The arrays that each rank wrote (tp_run.py)."""
    work.mkdir(parents=True, exist_ok=True)
    ids = work / "ids.json"
    ids.write_text(json.dumps(windows))
    options = {"mpi": tp > 1, "steps": STEPS, "trace": trace, "threads": 1}
    arguments = [str(RUNNER), str(folder), str(work / "out"), str(ids), json.dumps(options)]
    mpi_command(tp, arguments, cwd=work)
    return [np.load(work / f"out.rank{r}.npz") for r in range(tp)]


def sizes(model: Model) -> list[int]:
    """The TP sizes that divide this model's heads."""
    config = model.reference.config
    kv = getattr(config, "num_key_value_heads", config.num_attention_heads)
    return [
        tp
        for tp in (2, 3, 4)
        if config.num_attention_heads % tp == 0 and (kv % tp == 0 or tp % kv == 0)
    ]


@pytest.mark.parametrize("scheme,dtype", [("fp32", "fp32"), ("fp16", "fp16"), ("w8a16", "fp16")])
def test_greedy_tokens_do_not_depend_on_the_number_of_ranks(
    model: Model, scheme: str, dtype: str, tmp_path: Path
) -> None:
    assert scheme in GREEDY_COMPARABLE
    windows = [model.text[:64]]
    one = run_ranks(model.folder(scheme, dtype=dtype), 1, windows, tmp_path / "1")[0]
    for tp in sizes(model):
        folder = model.folder(scheme, dtype=dtype, tp=tp)
        ranks = run_ranks(folder, tp, windows, tmp_path / str(tp))
        for other in ranks[1:]:
            np.testing.assert_array_equal(other["greedy"], ranks[0]["greedy"])
        assert_greedy_equal_or_tied(
            ranks[0]["greedy"].tolist(),
            one["greedy"].tolist(),
            ranks[0]["greedy_logits"],
            one["greedy_logits"],
        )


@pytest.mark.parametrize("scheme", ["w8a8", "w6ax"])
def test_shards_replay_as_the_whole_matrix_or_its_own_oracle(
    model: Model, scheme: str, tmp_path: Path
) -> None:
    """Each rank's linears equal NumPy's on the rank's rows (columns) and, summed, on the whole."""
    weights = layer_weights(model.reference)
    for tp in sizes(model):
        folder = model.folder(scheme, tp=tp)
        opened = _native.open_model_folder(str(folder))
        ranks = run_ranks(folder, tp, [model.text[:24]], tmp_path / str(tp), trace=True)
        for name, (w, bias) in weights.items():
            kind = name.split(".")[-1]
            for r, arrays in enumerate(ranks):
                shard_w, shard_bias = shard(kind, w, bias, opened, r)
                x = arrays[f"x.{name}"]
                y = replay(scheme, x, shard_w(scheme, x), shard_bias, act_bits(scheme, kind))
                limit = 1e-5 * max(float(np.abs(y).max()), 1e-6)
                assert float(np.abs(arrays[f"y.{name}"] - y).max()) <= limit, (name, tp, r)


def shard(kind: str, w: Any, bias: Any, opened: _native.ModelFolder, rank: int) -> Any:
    raise NotImplementedError


@pytest.mark.parametrize("scheme", ["w8a8", "w6ax"])
def test_perplexity_rule_across_tp_sizes(model: Model, scheme: str, tmp_path: Path) -> None:
    if not model.trained:
        pytest.skip("random weights have no perplexity to keep; replay covers them")
    length = min(512, model.positions)
    windows = list(model.windows(length, -(-30_000 // length)))
    one = model.engine(scheme)
    for tp in sizes(model):
        ranks = run_ranks(model.folder(scheme, tp=tp), tp, windows, tmp_path / str(tp))
        divergence = Divergence()
        for i, ids in enumerate(windows):
            divergence.add(ids, ranks[0][f"logits.{i}"], one.forward(ids))
        print(f"{model.name} {scheme} tp {tp}: {divergence}")
        TINY_LOOSE.check(divergence)


@pytest.mark.parametrize("scheme", ["fp32", "w8a16", "w8a8", "w6ax"])
def test_a_repeated_parallel_run_gives_the_same_bits(
    model: Model, scheme: str, tmp_path: Path
) -> None:
    tp = sizes(model)[0]
    folder = model.folder(scheme, tp=tp)
    first = run_ranks(folder, tp, [model.text[:40]], tmp_path / "a")
    second = run_ranks(folder, tp, [model.text[:40]], tmp_path / "b")
    np.testing.assert_array_equal(first[0]["logits.0"], second[0]["logits.0"])
    np.testing.assert_array_equal(first[0]["greedy"], second[0]["greedy"])
