"""What is measured of one case: speed by repeated requests, memory, and quality over a text."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flexq_ft.orchestrate.cli.console import write_atomically
from flexq_ft.orchestrate.eval.agreement import top1_agreement
from flexq_ft.orchestrate.eval.perplexity import (
    Perplexity,
    cut_windows,
    evaluate,
    perplexity_ratio,
)
from flexq_ft.orchestrate.sweep.case_config import Case
from flexq_ft.orchestrate.sweep.metrics import RATES, finished_metrics, flags_of, latency_name
from flexq_ft.orchestrate.timing import Timing, random_prompts

# Between these, in time, memory is the case's own.
LOADING = "loading"
TIMED = "timed"

WARM_UP_STEPS = 32  # of decode, after one prefill
_DIGITS = 4  # of a millisecond: a row holds every step


@dataclass(frozen=True, kw_only=True)
class Served:
    """One request. token_ms: until every sequence has its 1st, 2nd, … token; step_ms: of each
    decode step."""

    timing: Timing
    token_ms: Sequence[float]
    step_ms: Sequence[float]


class Session(Protocol):
    """A model that is loaded, as a case needs it."""

    vocab_size: int
    max_positions: int

    def encode(self, text: str) -> list[int]: ...
    def request(self, prompts: list[list[int]], *, output_tokens: int) -> Served: ...
    def score(self, ids: Sequence[int], /) -> tuple[npt.ArrayLike, npt.ArrayLike]: ...
    def warmed_up(self) -> None: ...  # the machine's state is read before timed requests, …
    def describe(self) -> dict[str, Any]: ...  # … and after them: model, machine, flags
    def sizes(self) -> dict[str, Any]: ...  # of weights and memory, of the requests so far
    def bytes_per_step(self, output_tokens: int) -> float: ...  # of decode, on the mean
    def read_bandwidth_gb_s(self) -> float: ...  # once closed: its buffer is no part of the case


def distinct_prompts(case: Case, vocab_size: int, *, request: int) -> list[list[int]]:
    """Random ids, different for every sequence and request, the same on every run."""
    return random_prompts(
        vocab_size, batch=case.batch, tokens=case.prompt_tokens, seed=(case.seed, request)
    )


def measure_speed(session: Session, case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Samples of timed requests after one that warms up; sizes, and memory thereafter."""
    warm_up = min(1 + WARM_UP_STEPS, case.output_tokens)
    session.request(distinct_prompts(case, session.vocab_size, request=0), output_tokens=warm_up)
    session.warmed_up()
    served: list[Served] = []
    while not _enough(served, case):
        prompts = distinct_prompts(case, session.vocab_size, request=len(served) + 1)
        served.append(session.request(prompts, output_tokens=case.output_tokens))
    measured = {
        **session.sizes(),
        "requests": len(served),
        "warm_up_steps": warm_up - 1,
        "lengths": [
            {
                "output_tokens": tokens,
                "bytes_per_step": session.bytes_per_step(tokens) if tokens > 1 else None,
            }
            for tokens in case.lengths()
        ],
    }
    return _samples(served, case), measured


def _samples(served: Sequence[Served], case: Case) -> dict[str, Any]:
    """A value a request, and a list a request of its steps."""
    rates = RATES if case.output_tokens > 1 else ("prefill_tok_s", "ttft_ms")
    samples: dict[str, Any] = {
        name: [getattr(one.timing, name) for one in served] for name in rates
    }
    for tokens in case.lengths():
        samples[latency_name(tokens)] = [one.token_ms[tokens - 1] for one in served]
    samples["step_ms"] = [[round(ms, _DIGITS) for ms in one.step_ms] for one in served]
    return samples


def _enough(served: Sequence[Served], case: Case) -> bool:
    repeat = case.repeat
    if len(served) < repeat.min:
        return False
    if len(served) >= repeat.max or repeat.until_cv is None:
        return True
    timings = [one.timing for one in served]
    rates = [timing.decode_tok_s or timing.prefill_tok_s for timing in timings]
    return len(rates) > 1 and statistics.stdev(rates) / statistics.mean(rates) <= repeat.until_cv


def measure_quality(session: Session, case: Case, *, state: Path) -> None:
    """Perplexity of a case into the state folder, unless it is there already."""
    ppl = case.quality.ppl
    record = QualityRecord(state, case.quality_id())
    if ppl is None or record.exists():
        return
    windows = cut_windows(
        Path(ppl.text).read_bytes(),
        session.encode,
        protocol=ppl.protocol,
        max_positions=session.max_positions,
        window=ppl.window,
        max_windows=ppl.max_windows,
    )
    record.write(evaluate(session, windows))


class QualityRecord:
    """Perplexity and the choices behind it, kept between the processes of a sweep.

    Cases that differ only in batch or lengths share one; a baseline's serves all its cases.
    """

    def __init__(self, state: Path, quality_id: str) -> None:
        self._json = state / f"{quality_id}.json"
        self._argmax = state / f"{quality_id}.npy"

    def exists(self) -> bool:
        return self._json.exists()

    def write(self, result: Perplexity) -> None:
        self._json.parent.mkdir(parents=True, exist_ok=True)
        with self._argmax.open("wb") as file:
            np.save(file, result.argmax)
        write_atomically(self._json, json.dumps(result.to_json(), allow_nan=False))

    def perplexity(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self._json.read_text(encoding="utf-8"))
        return result

    def argmax(self) -> npt.NDArray[np.int64]:
        with self._argmax.open("rb") as file:
            return np.asarray(np.load(file, allow_pickle=False), dtype=np.int64)


def quality_of(case: Case, *, state: Path) -> dict[str, Any] | None:
    """The `quality` of a row, from the records of the case and of its baseline."""
    if case.quality.ppl is None:
        return None
    record = QualityRecord(state, case.quality_id())
    quality: dict[str, Any] = {"ppl": record.perplexity(), "agreement": None}
    if (baseline_case := case.baseline()) is not None:
        baseline = QualityRecord(state, baseline_case.quality_id())
        ours = record.argmax()
        theirs = baseline.perplexity()
        ratio, interval = perplexity_ratio(quality["ppl"]["window_losses"], theirs["window_losses"])
        quality["agreement"] = {
            "with": case.quality.agreement_with,
            "top1": top1_agreement(ours, baseline.argmax()),
            "positions": int(ours.size),
            "baseline_perplexity": theirs["perplexity"],
            "perplexity_ratio": ratio,
            "perplexity_ratio_confidence95": interval,
        }
    return quality


def measure(
    case: Case,
    *,
    state: Path,
    open_session: Callable[[Case], AbstractContextManager[Session]],
    make_baseline: Callable[[Case], None],
    observe: Callable[[str], None] = lambda event: None,
    quality_only: bool = False,
) -> dict[str, Any]:
    """`model`, `machine`, `flags`, `metrics` and `quality` of a case.

    The baseline is made before this case's model is loaded, so that two models are never in memory
    together. observe: told LOADING and TIMED.
    """
    baseline = case.baseline()
    if (
        baseline is not None
        and baseline.quality_id() != case.quality_id()
        and not QualityRecord(state, baseline.quality_id()).exists()
    ):
        make_baseline(baseline)
    observe(LOADING)
    with open_session(case) as session:
        speed = None if quality_only else measure_speed(session, case)
        observe(TIMED)
        described = session.describe()
        measure_quality(session, case, state=state)
    quality = quality_of(case, state=state)
    if speed is None:
        return {**described, "metrics": None, "quality": quality}
    samples, measured = speed
    bandwidth = session.read_bandwidth_gb_s()
    metrics = finished_metrics(
        samples, {**measured, "batch": case.batch, "read_bandwidth_gb_s": bandwidth}
    )
    flags = [*described["flags"], *flags_of(metrics)]
    return {**described, "flags": flags, "metrics": metrics, "quality": quality}
