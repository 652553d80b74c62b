"""`flexq-ft eval tasks`: the model behind lm-eval's interface against lm-eval's own, local data."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flexq_ft import LLM
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.eval.harness import import_harness, local_task
from flexq_ft.orchestrate.eval.scorer import RuntimeScorer
from tests.orchestrate.schemas import validate
from tests.tools.checkpoints import make_checkpoint

Capture = pytest.CaptureFixture[str]

CONTEXT = 64


class Bar:
    def advance(self, amount: int, label: str = "") -> None:
        pass


def no_progress(description: str, total: int) -> Any:
    return nullcontext(Bar())


def test_without_the_package_the_error_says_what_to_install(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    assert run_cli(["eval", "tasks", str(tmp_path), "--json", "-q"]) == 2
    document = json.loads(capsys.readouterr().out)
    validate(document, "eval-tasks.json")
    assert "flexq-ft[eval]" in document["error"]["try"]


datasets = pytest.importorskip("datasets")
pytest.importorskip("lm_eval")
pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from flexq_ft.orchestrate.eval.harness_model import Harness  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    return make_checkpoint(folder, hidden=128, heads=4, kv_heads=2, inter=256, positions=128)


@pytest.fixture(scope="module")
def llm(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    cache = tmp_path_factory.mktemp("cache")
    with LLM(checkpoint, dtype="fp32", max_len=CONTEXT, max_batch=4, cache_dir=cache) as model:
        yield model


@pytest.fixture(scope="module")
def ours(llm: LLM) -> Any:
    return Harness(RuntimeScorer(llm), max_len=CONTEXT, progress=no_progress)


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    """lm-eval's own backend for transformers, with the same context."""
    from lm_eval.models.huggingface import HFLM

    import_harness()
    return HFLM(
        pretrained=str(checkpoint), dtype="float32", device="cpu", batch_size=1,
        max_length=CONTEXT - 1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets as `save_to_disk` writes them: a folder for a split, and a whole dictionary."""
    folder = tmp_path_factory.mktemp("data")
    piqa = [
        {"goal": f"Goal {n}", "sol1": f"way {n * n}", "sol2": f"no {n} way", "label": n % 2}
        for n in range(6)
    ]
    datasets.Dataset.from_list(piqa).save_to_disk(folder / "piqa" / "validation")
    arc = [
        {
            "id": str(n),
            "question": f"What is {n}?",
            "choices": {"text": [f"{n} a", "b", f"c {n}"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[n % 3],
        }
        for n in range(5)
    ]
    splits = {"train": arc[:2], "validation": arc[:1], "test": arc}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    ).save_to_disk(folder / "ARC-Easy")
    return folder


def requests(*arguments: Any) -> list[Any]:
    return [instance(*args) for args in arguments]


def instance(*args: Any) -> Any:
    return SimpleNamespace(args=args, arguments=args)


PAIRS = [
    ("A weight file", " that is too short"),
    ("When a reader meets a number", " stops"),
    ("A trailing space ", "moves on"),
    ("", "no context at all"),
    ("A very long beginning is lost. " * 9, "The end"),
    ("same context", " a"),
    ("same context", " b"),
]


def test_loglikelihoods_are_those_of_lm_evals_own_backend(ours: Any, theirs: Any) -> None:
    mine, reference = ours.loglikelihood(requests(*PAIRS)), theirs.loglikelihood(requests(*PAIRS))
    np.testing.assert_allclose([a for a, _ in mine], [a for a, _ in reference], atol=2e-3)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in reference]


def test_greedy_continuations_are_known_as_such(ours: Any, llm: LLM) -> None:
    """What the model itself would say is greedy; with one other token it is not."""
    ids = llm.tokenizer.encode("A weight file")
    logits = llm.forward_logits(ids)
    best = int(logits[-1].argmax())
    answers = ours._loglikelihood_tokens([(None, ids, [best]), (None, ids, [(best + 1) % 300])])
    assert [greedy for _, greedy in answers] == [True, False]
    logprobs = logits[-1] - np.log(np.exp(logits[-1].astype(np.float64)).sum())
    assert answers[0][0] == pytest.approx(logprobs[best], abs=1e-4)


def test_rolling_loglikelihoods_are_those_of_lm_evals_own_backend(ours: Any, theirs: Any) -> None:
    texts = [("short",), ("A text of several windows, one after the other. " * 12,)]
    mine = ours.loglikelihood_rolling(requests(*texts))
    reference = theirs.loglikelihood_rolling(requests(*texts))
    np.testing.assert_allclose(mine, reference, atol=5e-3)


def test_generation_is_that_of_lm_evals_own_backend(ours: Any, theirs: Any) -> None:
    kinds = [
        {"until": [], "max_gen_toks": 12, "do_sample": False},
        {"until": ["e"], "max_gen_toks": 20, "do_sample": False},
    ]
    prompts = ["A weight file", "It stops, says which file", "Ranks", "A long text. " * 20]
    asked = [(prompt, kind) for kind in kinds for prompt in prompts]
    mine = ours.generate_until(requests(*asked))
    assert mine == theirs.generate_until(requests(*asked))
    assert all("e" not in text for text in mine[4:])


def test_what_the_sampler_does_not_know_is_refused(ours: Any) -> None:
    with pytest.raises(ConfigError, match="num_beams"):
        ours.generate_until(requests(("a", {"num_beams": 4, "max_gen_toks": 3})))
    with pytest.raises(ConfigError, match="leave no room"):
        ours.generate_until(requests(("a", {"max_gen_toks": CONTEXT})))
    with pytest.raises(ConfigError, match="does not fit in 64"):
        ours.loglikelihood(requests(("a", "word " * CONTEXT)))


@pytest.mark.slow
def test_tasks_from_local_folders(
    checkpoint: Path,
    data: Path,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    theirs: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flexq_ft.orchestrate.eval.harness import load_tasks

    monkeypatch.chdir(tmp_path)  # no git repository
    args = ["eval", "tasks", str(checkpoint), "--cache-dir", str(tmp_path), "--dtype", "fp32"]
    args += ["--tasks", "piqa,arc_easy", "--data-dir", str(data), "--max-len", str(CONTEXT)]
    saved = tmp_path / "tasks.md"
    assert run_cli([*args, "--json", "-q", "--save", str(saved)]) == 0
    captured = capfd.readouterr()
    assert "fatal" not in captured.err
    document = json.loads(captured.out)
    validate(document, "eval-tasks.json")
    piqa, arc = document["results"]
    assert (piqa["task"], piqa["split"], piqa["examples"]) == ("piqa", "validation", 6)
    assert (arc["task"], arc["split"], arc["examples"]) == ("arc_easy", "test", 5)
    assert saved.read_text().count("| piqa |") == 2  # acc and acc_norm

    tasks = load_tasks(["piqa", "arc_easy"], data_dir=data, num_fewshot=None)
    outcome = import_harness().simple_evaluate(model=theirs, tasks=tasks, log_samples=False)
    for row in (piqa, arc):
        for metric, value in row["metrics"].items():
            expected = outcome["results"][row["task"]]
            assert value["value"] == pytest.approx(expected[f"{metric},none"])
            assert value["standard_error"] == pytest.approx(expected[f"{metric}_stderr,none"])


@pytest.mark.slow
def test_a_simulation_is_evaluated_too(checkpoint: Path, data: Path, capsys: Capture) -> None:
    args = ["eval", "tasks", str(checkpoint), "--tasks", "piqa", "--data-dir", str(data)]
    args += ["--simulate", "--wbits", "4", "--limit", "2", "--device", "cpu", "--json", "-q"]
    assert run_cli(args) == 0
    document = json.loads(capsys.readouterr().out)
    validate(document, "eval-tasks.json")
    assert document["config"]["simulation"]["wbits"] == 4
    assert document["results"][0]["examples"] == 2


def test_unknown_tasks_and_data_that_is_not_there_are_named(
    data: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run_cli(["eval", "tasks", str(tmp_path), "--tasks", "piqqa"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'piqa'?" in err and len(err) < 500  # lm-eval has thousands
    with pytest.raises(ConfigError, match=r"winogrande_xl holds no split that winogrande"):
        local_task("winogrande", data, num_fewshot=0)
    with pytest.raises(ConfigError, match="needs the split train"):
        local_task("piqa", data, num_fewshot=3)
    assert "training_split" not in local_task("arc_easy", data, num_fewshot=3)
