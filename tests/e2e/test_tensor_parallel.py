"""TP 1, 2, 3 and 4 under MPI: the same model, whatever the number of ranks; on the CPU, and on as
many GPUs as are here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.converter import convert
from tests.converter.smoothing_models import model_with_outliers, options
from tests.e2e.conftest import Model, hf_logits, hf_logprobs
from tests.e2e.test_quantized_models import act_bits, quantized, replay
from tests.reference import fake_quant
from tests.reference.divergence import (
    GREEDY_COMPARABLE,
    LARGE,
    TINY_LOOSE,
    Divergence,
    assert_greedy_equal_or_tied,
)
from tests.reference.ops import calc_diff
from tests.tools import mpi
from tests.tools.gpus import gpu_count, two_devices
from tests.tools.linears import layer_weights

pytestmark = mpi.needs_mpi

RUNNER = Path(__file__).parent / "tp_run.py"
STEPS = 48


def run_ranks(
    folder: Path,
    tp: int,
    windows: list[list[int]],
    work: Path,
    *,
    device: str = "cpu",
    trace: bool = False,
    score: bool = False,
) -> list[Any]:
    """The arrays that each rank wrote (tp_run.py)."""
    work.mkdir(parents=True, exist_ok=True)
    ids = work / "ids.json"
    ids.write_text(json.dumps(windows))
    options = {"mpi": tp > 1, "threads": 1, "steps": STEPS, "trace": trace, "score": score}
    options |= {"device": device}
    arguments = [str(RUNNER), str(folder), str(work / "out"), str(ids), json.dumps(options)]
    done = mpi.run_ranks(tp, [sys.executable, *arguments], cwd=work, timeout=600)
    assert done.returncode == 0, done.stderr
    return [np.load(work / f"out.rank{r}.npz") for r in range(tp)]


@pytest.fixture(params=two_devices(2))
def device(request: pytest.FixtureRequest) -> str:
    """What the ranks compute on; one GPU each."""
    return str(request.param)


def float_type(device: str) -> str:
    """In which quantised models are compared: GPUs have no fp32 products."""
    return "fp32" if device == "cpu" else "fp16"


def skip_without_kernels(dtype: str, device: str) -> None:
    if device == "cuda" and dtype == "fp32":
        pytest.skip("fp32 has no GPU kernels")


def sizes(model: Model, device: str = "cpu") -> list[int]:
    """The TP sizes that divide this model's heads; on GPUs those that are here, and whose share of
    the vocabulary is one that products there can have."""
    config = model.reference.config
    kv = getattr(config, "num_key_value_heads", config.num_attention_heads)
    fitting = [
        tp
        for tp in (2, 3, 4)
        if config.num_attention_heads % tp == 0 and (kv % tp == 0 or tp % kv == 0)
    ]
    if device == "cpu":
        return fitting
    fitting = [tp for tp in fitting if tp <= gpu_count() and config.vocab_size % (16 * tp) == 0]
    if not fitting:
        pytest.skip(f"no TP size of this model fits {gpu_count()} GPUs")
    return fitting


@pytest.mark.parametrize("scheme,dtype", [("fp32", "fp32"), ("fp16", "fp16"), ("w8a16", "fp16")])
def test_greedy_tokens_do_not_depend_on_the_number_of_ranks(
    model: Model, scheme: str, dtype: str, device: str, tmp_path: Path
) -> None:
    assert scheme in GREEDY_COMPARABLE
    skip_without_kernels(dtype, device)
    windows = [model.text[:64]]
    one_folder = model.folder(scheme, dtype=dtype)
    one = run_ranks(one_folder, 1, windows, tmp_path / "1", device=device)[0]
    for tp in sizes(model, device):
        folder = model.folder(scheme, dtype=dtype, tp=tp)
        ranks = run_ranks(folder, tp, windows, tmp_path / str(tp), device=device)
        for other in ranks[1:]:
            np.testing.assert_array_equal(other["greedy"], ranks[0]["greedy"])
        assert_greedy_equal_or_tied(
            ranks[0]["greedy"].tolist(),
            one["greedy"].tolist(),
            ranks[0]["greedy_logits"],
            one["greedy_logits"],
        )


@pytest.mark.parametrize("lm_head", ["w8", "w6"])
def test_a_quantised_head_is_cut_by_the_vocabulary(
    model: Model, lm_head: str, device: str, tmp_path: Path
) -> None:
    dtype = float_type(device)
    skip_without_kernels(dtype, device)
    w = model.reference.lm_head.weight.detach().float().numpy()
    scheme = {"w8": "w8a16", "w6": "w6ax"}[lm_head]  # that stores a weight alike
    codes, scales = quantized(scheme, w)
    for tp in sizes(model, device):
        folder = model.folder(dtype, dtype=dtype, tp=tp, lm_head=lm_head)
        ids = [model.text[:24]]
        ranks = run_ranks(folder, tp, ids, tmp_path / str(tp), device=device, trace=True)
        x = ranks[0]["x.lm_head"]
        want = replay(scheme, x, codes, scales, None, 16)
        y = np.concatenate([arrays["y.lm_head"] for arrays in ranks], axis=1)
        limit = 1e-5 * float(np.abs(want).max())
        assert float(np.abs(y - want).max()) <= limit, tp
        np.testing.assert_array_equal(ranks[0]["logits.0"], y)
        logits, tokens = ranks[0]["greedy_logits"], ranks[0]["greedy"]
        margins = logits.max(-1) - logits[np.arange(len(tokens)), tokens]
        assert margins.max() <= (0 if device == "cpu" else 0.02), tp  # a GPU decodes otherwise


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8", "w6ax"])
def test_shards_replay_as_numpy_on_their_part_of_the_whole(
    model: Model, scheme: str, device: str, tmp_path: Path
) -> None:
    """Weight integers are the whole matrix's, but where o_proj is cut inside a group."""
    dtype = float_type(device)
    skip_without_kernels(dtype, device)
    weights = layer_weights(model.reference)
    for tp in sizes(model, device):
        folder = model.folder(scheme, dtype=dtype, tp=tp)
        opened = _native.open_model_folder(str(folder))
        head_dim = opened.config.head_dim
        ids = [model.text[:24]]
        ranks = run_ranks(folder, tp, ids, tmp_path / str(tp), device=device, trace=True)
        for name, (w, bias) in weights.items():
            kind = name.split(".")[-1]
            for r, arrays in enumerate(ranks):
                rows, columns = shard(kind, opened, r, head_dim)
                rows = slice(None) if rows is None else rows
                if columns is not None and scheme == "w6ax" and columns.start % 128:
                    assert kind == "o" and opened.cut_groups, (name, tp, r)
                if kind == "o" and opened.cut_groups:  # cut first: groups restart at the edge
                    codes, scales = quantized(scheme, np.ascontiguousarray(w[:, columns]))
                else:
                    codes, scales = quantized(scheme, w)
                    codes, scales = codes[rows], scales[rows]
                    if columns is not None:
                        codes = codes[:, columns]
                        if scheme == "w6ax":
                            scales = scales[:, columns.start // 128 : -(-columns.stop // 128)]
                x = arrays[f"x.{name}"]
                part = None if bias is None else stored(bias[rows], dtype)
                y = replay(scheme, x, codes, scales, part, act_bits(scheme, kind))
                if device == "cuda" and scheme == "w8a16":  # tensor cores round sums of floats
                    assert calc_diff(arrays[f"y.{name}"], y) <= 1e-7, (name, tp, r)
                    continue
                limit = 1e-5 * max(float(np.abs(y).max()), 1e-6)
                assert float(np.abs(arrays[f"y.{name}"] - y).max()) <= limit, (name, tp, r)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "opt"])
def test_static_scales_round_a_share_of_an_input_as_the_whole(
    kind: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    source = model_with_outliers(tmp_path / "hf", kind)
    chosen = options(activation_scales="static", dtype="fp32", tp=(1, 2))
    convert(source, tmp_path / "out", chosen)
    one, folder = _native.Engine(str(tmp_path / "out/1-gpu")), tmp_path / "out/2-gpu"
    opened = _native.open_model_folder(str(folder))
    windows = [list(range(first, first + 24)) for first in (3, 40, 99, 280)]
    ranks = run_ranks(folder, 2, windows, tmp_path, trace=True)
    records = [r for r in one.trace(windows[0]) if r["name"] != "lm_head"]
    assert len(records) == 8
    for record in records:
        name = record["name"]
        x, y = ([arrays[f"{part}.{name}"] for arrays in ranks] for part in ("x", "y"))
        rows = [shard(name.split(".")[-1], opened, r, opened.config.head_dim)[0] for r in (0, 1)]
        if rows[0] is None:
            whole = one.run_linear(name, np.concatenate(x, axis=1))
            assert float(np.abs(y[0] + y[1] - whole).max()) <= 1e-5 * np.abs(whole).max(), name
            continue
        np.testing.assert_array_equal(x[0], x[1])
        whole = one.run_linear(name, x[0])
        for part, own in zip(y, rows, strict=True):
            assert float(np.abs(part - whole[:, own]).max()) <= 1e-5 * np.abs(whole).max(), name
    divergence = Divergence()
    for i, ids in enumerate(windows):
        divergence.add(ids, ranks[0][f"logits.{i}"], one.forward(ids))
    measured(f"{kind} w8a8 static tp 2: {divergence}")
    TINY_LOOSE.check(divergence)


def stored(bias: Any, dtype: str) -> Any:
    """As the float files of a folder hold it."""
    return bias if dtype == "fp32" else bias.astype(np.float16).astype(np.float32)


def shard(kind: str, opened: _native.ModelFolder, rank: int, head_dim: int) -> tuple[Any, Any]:
    """The rows and the columns of the whole [n, k] that a rank holds; None: all."""
    heads, kv = opened.shards.heads, opened.shards.kv_heads
    inter = range(*opened.shards.inter[rank])
    if kind == "o":
        return None, slice(heads[rank][0] * head_dim, heads[rank][1] * head_dim)
    if kind in ("down", "fc2"):
        return None, slice(inter.start, inter.stop)
    if kind == "fc1":
        return list(inter), None
    if kind == "gate_up":
        whole = opened.config.inter_size
        return [*inter, *(whole + i for i in inter)], None
    q_end = opened.config.num_heads * head_dim
    k_end = q_end + opened.config.num_kv_heads * head_dim
    q = range(heads[rank][0] * head_dim, heads[rank][1] * head_dim)
    k = range(q_end + kv[rank][0] * head_dim, q_end + kv[rank][1] * head_dim)
    return [*q, *k, *(k_end - q_end + i for i in k)], None


@pytest.mark.parametrize("scheme", ["w8a8", "w6ax"])
def test_perplexity_rule_across_tp_sizes(
    model: Model, scheme: str, device: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    dtype = float_type(device)
    skip_without_kernels(dtype, device)
    if not model.trained:
        pytest.skip("random weights have no perplexity to keep; replay covers them")
    length = min(2048 if model.is_large else 512, model.positions)
    windows = list(model.windows(length, -(-30_000 // length)))
    one = model.engine(scheme, dtype=dtype, device=device)
    for tp in sizes(model, device):
        folder = model.folder(scheme, dtype=dtype, tp=tp)
        ranks = run_ranks(
            folder, tp, windows, tmp_path / str(tp), device=device, score=model.is_large
        )
        opened = _native.open_model_folder(str(folder))
        # Where o_proj is cut inside a group, TP 1 is another quantised model: ask transformers.
        cut = cut_reference(model, scheme, opened) if opened.cut_groups else None
        divergence = Divergence()
        for i, ids in enumerate(windows):
            if model.is_large:
                theirs = one.score(ids)[0] if cut is None else hf_logprobs(cut, ids)
                divergence.add_scores(ranks[0][f"logprobs.{i}"], theirs)
            else:
                theirs = one.forward(ids) if cut is None else hf_logits(cut, ids)
                divergence.add(ids, ranks[0][f"logits.{i}"], theirs)
        measured(f"{model.name} {scheme} tp {tp} {device}: {divergence}")
        (LARGE if model.is_large else TINY_LOOSE).check(divergence)


def cut_reference(model: Model, scheme: str, opened: _native.ModelFolder) -> Any:
    """Fake-quantised transformers whose o_proj has the ranks' groups."""
    hf = model.hf()
    edges = [begin * opened.config.head_dim for begin, _ in opened.shards.heads[1:]]
    fake_quant.quantize_model(hf, scheme, fake_quant.FLEXQ, o_edges=edges)
    return hf


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "bf16", "w8a16", "w8a8", "w6ax"])
def test_a_repeated_parallel_run_gives_the_same_bits(
    model: Model, scheme: str, device: str, tmp_path: Path
) -> None:
    dtype = scheme if scheme in ("fp16", "bf16", "fp32") else float_type(device)
    skip_without_kernels(dtype, device)
    tp = sizes(model, device)[0]
    folder = model.folder(scheme, dtype=dtype, tp=tp)
    first = run_ranks(folder, tp, [model.text[:40]], tmp_path / "a", device=device)
    second = run_ranks(folder, tp, [model.text[:40]], tmp_path / "b", device=device)
    np.testing.assert_array_equal(first[0]["logits.0"], second[0]["logits.0"])
    np.testing.assert_array_equal(first[0]["greedy"], second[0]["greedy"])
