"""`flexq-ft compare`: what is matched, what is refused, what is a regression."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.bench.samples import summary
from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.compare.condition import parse_condition
from flexq_ft.orchestrate.envelope import envelope, environment
from flexq_ft.orchestrate.sweep.case_config import Case
from flexq_ft.orchestrate.sweep.metrics import finished_metrics, joined
from tests.orchestrate.schemas import validate

Capture = pytest.CaptureFixture[str]
Row = dict[str, Any]
DIGEST = "sha256:" + 64 * "0"


def machine(name: str) -> dict[str, Any]:
    return {"device": "cuda:0", "name": name, "ranks": 1, "threads": 2, "gpus_before": [],
            "gpus_after": [], "gemm_note": "", "step_note": "", "step_kernel_batch": 0}  # fmt: skip


def model(digest: str = DIGEST) -> dict[str, Any]:
    return {"name": "m", "digest": digest, "scheme": "fp16", "policy": None, "dtype": "fp16",
            "lm_head": "fp16", "parameters": 5}  # fmt: skip


def sweep_row(
    *rates: float, gpu: str = "H100", protocol: str = "p", digest: str = DIGEST, **config: Any
) -> Row:
    """A case whose requests decoded at these rates."""
    case = Case(model="out/m", **{"scheme": "fp16", "output_tokens": 3, **config})
    samples = {
        "prefill_tok_s": [100.0] * len(rates), "ttft_ms": [10.0] * len(rates),
        "decode_tok_s": list(rates), "tpot_ms": [1e3 / rate for rate in rates],
        "latency_3_ms": [10.0 + 2e3 / rate for rate in rates],
        "step_ms": [[1e3 / rate] * 2 for rate in rates],
    }  # fmt: skip
    measured = {
        "weights_bytes": 1000, "peak_memory_bytes": 2000, "requests": len(rates), "batch": 1,
        "memory_bytes": {"weights": 1, "kv_cache": 1, "activations": 1, "workspace": 1,
                         "process": None, "polled": None},
        "lengths": [{"output_tokens": 3, "bytes_per_step": 1e6}], "warm_up_steps": 2,
        "read_bandwidth_gb_s": 1.0,
    }  # fmt: skip
    ppl = {
        "perplexity": 8.0, "standard_error": 0.1, "loss": 2.0, "window_losses": [2.0],
        "protocol": "raw", "window": 9, "stride": 9, "windows": 1, "tokens": 9, "text_tokens": 9,
        "text_sha256": 64 * "0", "short_text": False, "description": protocol,
    }  # fmt: skip
    return {
        "case_id": f"{case.batch:016x}", "round": 1,
        "config": case.model_dump(mode="json"), "model": model(digest), "machine": machine(gpu),
        "metrics": finished_metrics(samples, measured),
        "quality": {"ppl": ppl, "agreement": None}, "flags": [],
        "error": None, "command": "c", "environment": environment(), "seconds": 1.0,
    }  # fmt: skip


def failed(row: Row) -> Row:
    error = {"kind": "OutOfMemoryError", "message": "needs 9 GB.", "cause": "", "try": "",
             "exit_code": 5, "rank": None, "host": None}  # fmt: skip
    return {**row, "model": None, "machine": None, "metrics": None, "quality": None, "error": error}


def bench_row(*tpot_ms: float, gpu: str = "H100", scheme: str = "fp16") -> Row:
    values = list(tpot_ms)
    return {
        "config": {"model": "m", "is_shape": False, "synthetic_weights": False, "scheme": scheme,
                   "policy": None, "dtype": None, "lm_head": None, "tp": 1, "threads": None,
                   "device": "cuda", "batch": 4, "prompt_tokens": 5, "output_tokens": 3,
                   "prefill_chunk": None, "graphs": True, "step_kernel": "auto", "seed": 0},
        "model": model(), "machine": {**machine(gpu), "read_bandwidth_gb_s": 1.0},
        "prefill": {"tokens": 20, "ttft_ms": summary([10.0, 10.0]), "device_ms": None,
                    "tok_s": 2000.0, "device_tok_s": None, "operations": 1.0,
                    "tflops_per_rank": 1.0, "share_of_peak": None},
        "decode": {"tokens": 8, "tpot_ms": summary(values), "device_step_ms": None,
                   "tok_s": 4e3 / values[0], "device_tok_s": None, "mean_context": 6.5,
                   "bytes_per_rank": {"weights": 1.0, "scales": 0.0, "lm_head": 1.0,
                                      "kv_cache": 1.0, "total": 3.0},
                   "share_of_bandwidth": 0.5},
        "memory_bytes": {"weights": 1, "kv_cache": 1, "activations": 1, "workspace": 1, "total": 4},
        "warm_up": {"requests": 3, "is_steady": True, "cv": 0.0}, "rounds": len(values),
        "interleaved": False, "flags": [], "profile": None, "error": None,
        "samples": {"ttft_ms": [10.0, 10.0], "tpot_ms": values, "prefill_device_ms": [],
                    "decode_device_ms": []},
        "reproduce": "flexq-ft bench latency m",
    }  # fmt: skip


class Files:
    """Result documents in a folder, and compare run on two of them."""

    def __init__(self, folder: Path, capsys: Capture) -> None:
        self.folder = folder
        self._capsys = capsys

    def sweep(self, name: str, *rows: Row) -> Path:
        done = [joined([row], rounds=1) for row in rows]
        return self._write(name, "sweep-result", done)

    def bench(self, name: str, *rows: Row) -> Path:
        return self._write(name, "bench-latency", list(rows))

    def _write(self, name: str, kind: str, rows: list[Row]) -> Path:
        document = envelope(
            f"flexq-ft/{kind}/1", argv=[], config={}, results=rows, warnings=[], error=None
        )
        validate(document, f"{kind}.json")
        path = self.folder / name
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    def compare(self, a: Path, b: Path, *options: str) -> tuple[int, dict[str, Any]]:
        code = run_cli(["compare", str(a), str(b), "--json", *options])
        document = json.loads(self._capsys.readouterr().out)
        validate(document, "compare.json")
        return code, document


@pytest.fixture
def files(tmp_path: Path, capsys: Capture) -> Files:
    return Files(tmp_path, capsys)


def changes(document: dict[str, Any], pair: int = 0) -> dict[str, dict[str, Any]]:
    return {one["metric"]: one for one in document["results"]["pairs"][pair]["changes"]}


def test_ratios_and_verdicts(files: Files) -> None:
    a = files.sweep("a", sweep_row(100.0, 101.0, 99.0))
    b = files.sweep("b", sweep_row(80.0, 81.0, 79.0))
    code, document = files.compare(a, b)
    assert code == 0 and document["results"]["fail_if"] == []
    found = changes(document)
    assert found["decode_tok_s"]["ratio"] == pytest.approx(0.8)
    # 4.30 * 1 / sqrt(3) of either mean, of the ratio.
    expected = 0.8 * (4.30 / 3**0.5) * (0.01**2 + 0.0125**2) ** 0.5
    assert found["decode_tok_s"]["interval95"] == pytest.approx(expected, rel=1e-3)
    assert found["decode_tok_s"]["verdict"] == found["share_of_floor"]["verdict"] == "worse"
    assert found["tpot_ms"]["verdict"] == found["latency_3_ms"]["verdict"] == "worse"
    assert found["peak_memory_bytes"]["verdict"] == found["perplexity"]["verdict"] == "same"
    back = changes(files.compare(b, a)[1])
    assert {back[name]["verdict"] for name in ("decode_tok_s", "tpot_ms")} == {"better"}


def test_forms_of_the_step_and_heads_are_cases_of_their_own(files: Files) -> None:
    kinds: list[dict[str, Any]] = [{}, {"step_kernel": "off"}, {"lm_head": "w8"}]
    before = files.sweep("a", *(sweep_row(100.0, 100.0, **kind) for kind in kinds))
    after = files.sweep("b", sweep_row(90.0, 90.0), sweep_row(80.0, 80.0, step_kernel="off"))
    results = files.compare(before, after)[1]["results"]
    ratios = {
        pair["case"]: {one["metric"]: one["ratio"] for one in pair["changes"]}["decode_tok_s"]
        for pair in results["pairs"]
    }
    assert ratios == {
        "m fp16 batch 1 128+3": pytest.approx(0.9),
        "m fp16, op by op batch 1 128+3": pytest.approx(0.8),
    }
    assert results["only_a"] == ["m fp16, lm_head w8 batch 1 128+3"]


def test_noise_is_no_change_and_one_request_says_nothing(files: Files) -> None:
    a = files.sweep("a", sweep_row(100.0, 110.0))
    b = files.sweep("b", sweep_row(95.0, 105.0))
    assert changes(files.compare(a, b)[1])["decode_tok_s"]["verdict"] == "within noise"
    single = files.sweep("c", sweep_row(50.0))
    change = changes(files.compare(a, single)[1])["decode_tok_s"]
    assert (change["interval95"], change["verdict"]) == (None, "unknown noise")


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        ("decode_tok_s < 0.97x", 1),
        ("decode_tok_s<0.95x", 0),
        ("decode_tok_s <= 0.96x", 1),
        ("tpot_ms > 1.04x", 1),
        ("tpot_ms >= 1.05x", 0),
        ("decode_tok_s < 100", 1),
        ("decode_tok_s < 96", 0),
        ("perplexity > 1x", 0),
    ],
)
def test_conditions(files: Files, condition: str, code: int) -> None:
    a = files.sweep("a", sweep_row(100.0, 100.0), sweep_row(50.0, 50.0, batch=2, scheme="w8a8"))
    b = files.sweep("b", sweep_row(96.0, 96.0), sweep_row(500.0, 500.0, batch=2, scheme="w8a8"))
    found, document = files.compare(a, b, "--fail-if", condition)
    assert found == code
    (result,) = document["results"]["fail_if"]
    assert result["condition"] == condition and len(result["offenders"]) == code
    if code:
        assert result["offenders"][0].startswith("m fp16 batch 1 128+3: ")


def test_a_case_that_fails_now_is_a_regression(files: Files) -> None:
    a, b = sweep_row(9.0, 9.0), sweep_row(9.0, 9.0, batch=2)
    before = files.sweep("a", a, failed(b))
    after = files.sweep("b", failed(a), b)
    code, document = files.compare(before, after, "--fail-if", "decode_tok_s < 0.1x")
    assert code == 1
    assert document["results"]["fail_if"][0]["offenders"] == [
        "m fp16 batch 1 128+3: it failed. OutOfMemoryError: needs 9 GB."
    ]
    assert document["results"]["pairs"][1]["changes"] == []


def test_rows_without_a_counterpart_are_listed(files: Files, capsys: Capture) -> None:
    a = files.sweep("a", sweep_row(9.0), sweep_row(9.0, batch=2))
    b = files.sweep("b", sweep_row(9.0), sweep_row(9.0, scheme="w6ax", policy="w6a8", tp=2))
    results = files.compare(a, b)[1]["results"]
    assert results["only_a"] == ["m fp16 batch 2 128+3"]
    assert results["only_b"] == ["m w6ax (w6a8) tp 2 batch 1 128+3"]
    assert run_cli(["compare", str(a), str(b)]) == 0
    captured = capsys.readouterr()
    assert "ratio" not in captured.out  # no table: nothing has changed
    assert "only in A: m fp16 batch 2" in captured.out and captured.err == ""


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"gpu": "H200"}, "device: H100 (cuda) against H200 (cuda) (2 cases)"),
        ({"protocol": "q"}, "perplexity: p against q (2 cases)"),
        ({"digest": "sha256:" + 64 * "f"}, "model: sha256:000000000000 against sha256:ffff"),
    ],
)
def test_unlike_things_are_refused_unless_asked_for(
    files: Files, capsys: Capture, other: dict[str, str], text: str
) -> None:
    a = files.sweep("a", sweep_row(9.0), sweep_row(9.0, batch=2))
    b = files.sweep(
        "b",
        sweep_row(8.0, **other),  # type: ignore[arg-type]
        sweep_row(8.0, batch=2, **other),  # type: ignore[arg-type]
    )
    assert run_cli(["compare", str(a), str(b)]) == 2
    error = capsys.readouterr().err
    assert "are not alike; nothing was compared" in error and text in error
    assert "--allow-different" in error
    code, document = files.compare(a, b, "--allow-different")
    assert code == 0 and len(document["results"]["differences"]) == 1
    assert document["warnings"][0].startswith(f"not alike: {text[:20]}")


def test_a_sweep_and_a_benchmark_have_no_ratio(files: Files, capsys: Capture) -> None:
    a, b = files.sweep("a", sweep_row(9.0)), files.bench("b", bench_row(2.0))
    assert run_cli(["compare", str(a), str(b), "--allow-different"]) == 2
    assert "is of sweep" in capsys.readouterr().err


def test_benchmarks(files: Files) -> None:
    a = files.bench("a", bench_row(2.0, 2.0), bench_row(3.0, 3.0, scheme="w8a8"))
    b = files.bench("b", bench_row(2.5, 2.5))
    code, document = files.compare(a, b, "--fail-if", "decode_tok_s < 0.97x")
    assert code == 1 and document["results"]["only_a"] == ["m w8a8 batch 4 5+3"]
    found = changes(document)
    assert found["decode_tok_s"]["ratio"] == pytest.approx(0.8)
    assert found["tpot_ms"]["verdict"] == found["decode_tok_s"]["verdict"] == "worse"
    assert found["prefill_tok_s"]["verdict"] == found["memory_bytes"]["verdict"] == "same"


def test_no_case_in_common(files: Files, capsys: Capture) -> None:
    a, b = files.sweep("a", sweep_row(9.0)), files.sweep("b", sweep_row(9.0, batch=7))
    assert run_cli(["compare", str(a), str(b)]) == 2
    assert "no case in common" in capsys.readouterr().err


def test_the_folder_of_a_sweep_joins_its_rounds(files: Files) -> None:
    folder = files.folder / "out"
    folder.mkdir()
    row = sweep_row(9.0)
    lines = [json.dumps({**row, "round": n}) + "\n" for n in (1, 2)]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    for path in (folder, folder / "rows.jsonl"):
        code, document = files.compare(path, path, "--fail-if", "decode_tok_s < 1x")
        assert code == 0 and changes(document)["decode_tok_s"]["verdict"] == "same"
        assert changes(document)["decode_tok_s"]["interval95"] == 0.0


def test_markdown_and_csv_have_every_number(files: Files) -> None:
    a, b = files.sweep("a", sweep_row(100.0, 100.0)), files.sweep("b", sweep_row(80.0, 80.0))
    saves = [files.folder / "c.md", files.folder / "c.csv"]
    options = [part for save in saves for part in ("--save", str(save))]
    _, document = files.compare(a, b, *options, "--fail-if", "ttft_ms > 1.5x")
    text = saves[0].read_text(encoding="utf-8")
    assert "| m fp16 batch 1 128+3 | decode_tok_s | 100 | 80 | 0.800 | worse |  |" in text
    assert "## `ttft_ms > 1.5x`\n\n- of no case" in text
    lines = list(csv.DictReader(saves[1].read_text(encoding="utf-8").splitlines()))
    assert [line["metric"] for line in lines] == list(changes(document))


@pytest.mark.parametrize("text", ["decode_tok_s", "< 0.97x", "a = 1x", "a < x", "a < 5%", "a < -1"])
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a condition"):
        parse_condition(text)


def test_a_metric_that_nobody_has_is_an_error(files: Files, capsys: Capture) -> None:
    a = files.sweep("a", sweep_row(9.0))
    assert run_cli(["compare", str(a), str(a), "--fail-if", "decode_toks < 0.9x"]) == 2
    assert "Did you mean 'decode_tok_s'" in capsys.readouterr().err


def with_metric(document: Any, **metrics: Any) -> Any:
    (row,) = document["results"]
    return {**document, "results": [{**row, "metrics": {**row["metrics"], **metrics}}]}


def without(row: Row, key: str) -> Row:
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: {**d, "schema": "flexq-ft/run/1"}, "cannot be compared"),
        (lambda d: {**d, "results": None}, "holds no results"),
        (lambda d: {**d, "results": [{"case_id": "x"}]}, "holds no results"),
        (lambda d: {**d, "results": 2 * d["results"]}, "two rows of the same case"),
        (lambda d: [], "is not a result"),
        (lambda d: {**d, "environment": {}}, "no result that this version can read"),
        (lambda d: {**d, "results": [without(d["results"][0], "flags")]}, "no result that"),
        (lambda d: {**d, "results": [{**d["results"][0], "metrics": {"x": 1}}]}, "no result that"),
        (lambda d: with_metric(d, weights_bytes="many"), "'many' is no number"),
    ],
)
def test_files_that_are_no_results(
    files: Files, capsys: Capture, change: Callable[[Any], Any], text: str
) -> None:
    path = files.sweep("a", sweep_row(9.0))
    path.write_text(json.dumps(change(json.loads(path.read_text()))), encoding="utf-8")
    assert run_cli(["compare", str(path), str(path)]) == 2
    assert text in capsys.readouterr().err
