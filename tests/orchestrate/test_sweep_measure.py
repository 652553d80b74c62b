"""Measuring one case: batch timing, repeats, and whose perplexity is taken when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.engine.client import TokenEvent
from flexq_ft.orchestrate.sweep.case_config import Case
from flexq_ft.orchestrate.sweep.measure import TIMED, Served, measure
from flexq_ft.orchestrate.sweep.spec import PerplexitySpec, Quality, Repeat
from flexq_ft.orchestrate.timing import (
    Timing,
    batch_timing,
    decode_steps_ms,
    token_times_ms,
)


class FakeSession:
    """Vocabulary 50, 64 positions; decodes at the given rates; chooses by the case's scheme."""

    vocab_size = 50
    max_positions = 64

    def __init__(self, case: Case, rates: Sequence[float]) -> None:
        self._rates = iter(rates)
        self._offset = 0 if case.scheme == "fp16" else 1
        self.requests: list[tuple[list[list[int]], int]] = []
        self.scored = 0
        self.calls: list[str] = []

    def encode(self, text: str) -> list[int]:
        return [byte % 50 for byte in text.encode()]

    def request(self, prompts: list[list[int]], *, output_tokens: int) -> Served:
        self.requests.append((prompts, output_tokens))
        self.calls.append("request")
        rate = next(self._rates)
        one = output_tokens == 1
        timing = Timing(
            prefill_tok_s=10 * rate,
            decode_tok_s=None if one else rate,
            ttft_ms=1.0,
            tpot_ms=None if one else 1000 / rate,
        )
        steps = [1000 / rate] * (output_tokens - 1)
        token_ms = [1.0 + sum(steps[:n]) for n in range(output_tokens)]
        return Served(timing=timing, token_ms=token_ms, step_ms=steps)

    def score(self, ids: Sequence[int], /) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        self.scored += 1
        positions = np.arange(len(ids) - 1)
        chosen = np.where(positions % 4 == 0, self._offset, 0)
        return np.full(len(ids) - 1, -1.0, dtype=np.float32), chosen

    def warmed_up(self) -> None:
        self.calls.append("warmed up")

    def describe(self) -> dict[str, Any]:
        self.calls.append("describe")
        return {"model": {}, "machine": {}, "flags": ["busy"]}

    def sizes(self) -> dict[str, Any]:
        return {"peak_memory_bytes": 2000}

    def bytes_per_step(self, output_tokens: int) -> float:
        return 1e6 * output_tokens

    def read_bandwidth_gb_s(self) -> float:
        self.calls.append("bandwidth")
        return 2.0


class Lab:
    """Runs `measure` with fake sessions and remembers what was opened."""

    def __init__(self, folder: Path, rates: Sequence[float] = (1.0,) * 99) -> None:
        self.state = folder / "state"
        self.rates = rates
        self.sessions: list[FakeSession] = []
        self.opened: list[str | None] = []
        self.events: list[str] = []

    @contextmanager
    def open(self, case: Case) -> Iterator[FakeSession]:
        self.opened.append(case.scheme)
        self.events.append(f"open {case.scheme}")
        session = FakeSession(case, self.rates)
        self.sessions.append(session)
        yield session

    def _observe(self, event: str) -> None:
        self.events.append(event)
        if event == TIMED:
            self.sessions[-1].calls.append(event)

    def measure(self, case: Case, *, quality_only: bool = False) -> dict[str, Any]:
        return measure(
            case,
            state=self.state,
            open_session=self.open,
            make_baseline=lambda base: void(self.measure(base, quality_only=True)),
            observe=self._observe,
            quality_only=quality_only,
        )


def void(_: object) -> None:
    """The value is not needed."""


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture
def quality(tmp_path: Path) -> Quality:
    text = tmp_path / "text.txt"
    text.write_text("twenty letters and a few more", encoding="utf-8")
    ppl = PerplexitySpec(text=str(text), protocol="raw", window=9)
    return Quality(ppl=ppl, agreement_with="fp16")


def test_warm_up_then_distinct_prompts_of_the_asked_lengths(lab: Lab) -> None:
    lab.measure(Case(model="m", batch=3, prompt_tokens=5, output_tokens=9))
    requests = lab.sessions[0].requests
    assert [output for _, output in requests] == [9, 9, 9, 9]
    prompts = [tuple(prompt) for batch, _ in requests for prompt in batch]
    assert {len(prompt) for prompt in prompts} == {5}
    assert len(set(prompts)) == 12
    again = Lab(lab.state)
    again.measure(Case(model="m", batch=3, prompt_tokens=5, output_tokens=9))
    assert again.sessions[0].requests == requests


def test_rates_are_medians_without_the_warm_up(tmp_path: Path) -> None:
    lab = Lab(tmp_path, rates=[999.0, 3.0, 1.0, 2.0])
    metrics = lab.measure(Case(model="m", prompt_tokens=4, output_tokens=4))["metrics"]
    assert (metrics["prefill_tok_s"], metrics["decode_tok_s"]) == (20.0, 2.0)
    assert metrics["samples"]["decode_tok_s"] == [3.0, 1.0, 2.0]
    assert (metrics["requests"], metrics["warm_up_steps"]) == (3, 3)


def test_warm_up_is_32_decode_steps_of_a_longer_output(lab: Lab) -> None:
    session, case = lab, Case(model="m", prompt_tokens=4, output_tokens=50)
    assert session.measure(case)["metrics"]["warm_up_steps"] == 32
    assert [output for _, output in lab.sessions[0].requests] == [33, 50, 50, 50]


def test_one_request_serves_its_prefixes(tmp_path: Path) -> None:
    """Time to the n-th token, and its decode at its own mean context."""
    lab = Lab(tmp_path, rates=[999.0, 100.0, 200.0])
    case = Case(
        model="m", prompt_tokens=4, output_tokens=40, latency_at=(1, 11), repeat=Repeat(min=2)
    )
    result = lab.measure(case)
    first, second, whole = result["metrics"]["lengths"]
    assert [first["output_tokens"], second["output_tokens"], whole["output_tokens"]] == [1, 11, 40]
    assert first["latency_ms"] == 1.0 and first["share_of_floor"] is None
    assert second["latency_ms"] == 1 + 10 * 7.5 and whole["latency_ms"] == 1 + 39 * 7.5
    assert second["decode_tok_s"] == pytest.approx(1000 / 7.5)
    assert second["step_p50_ms"] == 7.5 and second["step_p90_ms"] == 10.0
    # 11e6 bytes at 2 GB/s are 5.5 ms, of 7.5.
    assert second["share_of_floor"] == pytest.approx(5.5 / 7.5)
    assert result["flags"] == ["busy", "suspect"]  # 40e6 bytes would take 20 ms
    assert lab.sessions[0].calls == [
        "request", "warmed up", "request", "request", "timed", "describe", "bandwidth",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rates", "expected"), [([10, 10], 2), ([10, 20, 15, 15, 15, 15], 5), ([10, 10.1], 2)]
)
def test_repeats_until_steady_or_max(tmp_path: Path, rates: list[float], expected: int) -> None:
    lab = Lab(tmp_path, rates=[1.0, *rates])
    repeat = Repeat(min=2, max=5, until_cv=0.02)
    metrics = lab.measure(Case(model="m", prompt_tokens=4, repeat=repeat, output_tokens=4))
    assert metrics["metrics"]["requests"] == expected


def test_one_output_token_has_no_decode_rate(lab: Lab) -> None:
    metrics = lab.measure(Case(model="m", prompt_tokens=4, output_tokens=1))["metrics"]
    assert metrics["decode_tok_s"] is None
    assert metrics["tpot_ms"] is None
    assert metrics["prefill_tok_s"] == 10.0
    assert "decode_tok_s" not in metrics["samples"]


def test_baseline_is_made_first_once_and_shared(lab: Lab, quality: Quality) -> None:
    case = Case(model="m", scheme="w8a8", prompt_tokens=4, output_tokens=4, quality=quality)
    result = lab.measure(case)["quality"]
    assert lab.opened == ["fp16", "w8a8"]
    events = ["loading", "open fp16", "timed", "loading", "open w8a8", "timed"]
    assert lab.events == events  # the baseline's are those of its own process
    assert lab.sessions[0].requests == []
    assert result["agreement"]["top1"] == pytest.approx(6 / 8)
    assert result["agreement"]["positions"] == 3 * 8
    assert result["ppl"]["perplexity"] == pytest.approx(np.e)
    against = result["agreement"]
    ratio = result["ppl"]["perplexity"] / against["baseline_perplexity"]
    assert against["perplexity_ratio"] == pytest.approx(ratio)
    low, high = against["perplexity_ratio_confidence95"]
    assert low <= ratio <= high
    lab.measure(case.model_copy(update={"batch": 2}))
    assert lab.opened == ["fp16", "w8a8", "w8a8"]
    assert lab.sessions[2].scored == 0
    assert len(lab.sessions[2].requests) == 4


def test_baseline_of_itself_needs_no_second_run(lab: Lab, quality: Quality) -> None:
    case = Case(model="m", scheme="fp16", prompt_tokens=4, output_tokens=4, quality=quality)
    assert lab.measure(case)["quality"]["agreement"]["top1"] == 1.0
    assert lab.opened == ["fp16"]


def test_tensor_parallel_case_is_compared_with_one_rank(lab: Lab, quality: Quality) -> None:
    case = Case(model="m", scheme="fp16", tp=2, prompt_tokens=4, output_tokens=4, quality=quality)
    assert lab.measure(case)["quality"]["agreement"]["top1"] == 1.0
    assert lab.opened == ["fp16", "fp16"]


def events(*tokens: tuple[int, float]) -> list[TokenEvent]:
    return [TokenEvent(i, 7, 0.0, None, 10.0, time) for i, time in tokens]


def test_batch_timing_of_one_sequence() -> None:
    timing = batch_timing(events((0, 12.0), (0, 12.5), (0, 13.0)), prompt_tokens=8)
    assert timing == Timing(prefill_tok_s=4.0, decode_tok_s=2.0, ttft_ms=2000.0, tpot_ms=500.0)


def test_batch_timing_counts_no_token_of_the_chunked_prefill_as_decode() -> None:
    """Sequence 0 decodes at 13.0 while 1 is still being prefilled; both decode after 14.0."""
    stream = events((0, 12.0), (0, 13.0), (0, 14.0), (1, 14.0), (0, 14.5), (1, 14.5), (1, 15.0))
    timing = batch_timing(stream, prompt_tokens=20)
    assert timing.prefill_tok_s == 5.0
    assert timing.decode_tok_s == 3.0


def test_token_times_wait_for_the_last_sequence() -> None:
    stream = events((0, 12.0), (0, 13.0), (0, 14.0), (1, 14.0), (0, 14.5), (1, 14.5), (1, 15.0))
    assert token_times_ms(stream) == [4000.0, 4500.0, 5000.0, 4500.0]
    assert decode_steps_ms(stream) == [500.0, 500.0]


def test_batch_timing_of_first_tokens_only() -> None:
    timing = batch_timing(events((0, 12.0), (1, 12.0)), prompt_tokens=8)
    assert timing.decode_tok_s is None
    assert timing.tpot_ms is None


def test_batch_timing_raises_the_error_of_a_request() -> None:
    failed = TokenEvent(0, -1, 0.0, None, 10.0, 10.0, error=ConfigError("does not fit"))
    with pytest.raises(ConfigError, match="does not fit"):
        batch_timing([failed], prompt_tokens=8)
