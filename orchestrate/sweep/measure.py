"""What is measured of one case: speed by repeated requests, memory, and quality over a text."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.cli.console import write_atomically
from flexq_ft.orchestrate.eval.agreement import top1_agreement
from flexq_ft.orchestrate.eval.perplexity import Perplexity, cut_windows, evaluate
from flexq_ft.orchestrate.sweep.plan import Case
from flexq_ft.orchestrate.timing import Timing, random_prompts

WARM_UP_TOKENS = 8
RATES = ("prefill_tok_s", "decode_tok_s", "ttft_ms", "tpot_ms")


class Session(Protocol):
    """A model that is loaded, as a case needs it."""

    vocab_size: int
    max_positions: int
    weights_bytes: int
    threads: int
    device: str

    def encode(self, text: str) -> list[int]: ...
    def request(self, prompts: list[list[int]], *, output_tokens: int) -> Timing: ...
    def score(self, ids: Sequence[int], /) -> tuple[npt.ArrayLike, npt.ArrayLike]: ...
    def peak_memory_bytes(self) -> int: ...


def distinct_prompts(case: Case, vocab_size: int, *, request: int) -> list[list[int]]:
    """Random ids, different for every sequence and request, the same on every run."""
    return random_prompts(
        vocab_size, batch=case.batch, tokens=case.prompt_tokens, seed=(case.seed, request)
    )


def measure_speed(session: Session, case: Case) -> dict[str, Any]:
    """Timed requests after one that warms up: medians, the samples, and memory thereafter."""
    needed = case.prompt_tokens + case.output_tokens
    if needed > session.max_positions:
        raise ConfigError(
            f"{case.prompt_tokens} prompt and {case.output_tokens} output tokens do not fit the "
            f"model's {session.max_positions} positions.",
            hint="shorter prompt_tokens or output_tokens, or an exclude entry",
        )
    warm_up = min(WARM_UP_TOKENS, case.output_tokens)
    session.request(distinct_prompts(case, session.vocab_size, request=0), output_tokens=warm_up)
    timings: list[Timing] = []
    while not _enough(timings, case):
        prompts = distinct_prompts(case, session.vocab_size, request=len(timings) + 1)
        timings.append(session.request(prompts, output_tokens=case.output_tokens))
    samples = {name: [getattr(timing, name) for timing in timings] for name in RATES}
    has_decode = case.output_tokens > 1
    medians = {
        name: statistics.median(values)
        if has_decode or name in ("prefill_tok_s", "ttft_ms")
        else None
        for name, values in samples.items()
    }
    return {
        "weights_bytes": session.weights_bytes,
        "peak_memory_bytes": session.peak_memory_bytes(),
        **medians,
        "requests": len(timings),
        "warm_up_requests": 1,
        "threads": session.threads,
        "device": session.device,
        "samples": {name: values for name, values in samples.items() if medians[name] is not None},
    }


def _enough(timings: list[Timing], case: Case) -> bool:
    repeat = case.repeat
    if len(timings) < repeat.min:
        return False
    if len(timings) >= repeat.max or repeat.until_cv is None:
        return True
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
        quality["agreement"] = {
            "with": case.quality.agreement_with,
            "top1": top1_agreement(ours, baseline.argmax()),
            "positions": int(ours.size),
            "baseline_perplexity": baseline.perplexity()["perplexity"],
        }
    return quality


def measure(
    case: Case,
    *,
    state: Path,
    open_session: Callable[[Case], AbstractContextManager[Session]],
    make_baseline: Callable[[Case], None],
    quality_only: bool = False,
) -> dict[str, Any]:
    """`metrics` and `quality` of a case. The baseline is made before this case's model is loaded,
    so that two models are never in memory together."""
    baseline = case.baseline()
    if (
        baseline is not None
        and baseline.quality_id() != case.quality_id()
        and not QualityRecord(state, baseline.quality_id()).exists()
    ):
        make_baseline(baseline)
    with open_session(case) as session:
        metrics = None if quality_only else measure_speed(session, case)
        measure_quality(session, case, state=state)
    return {"metrics": metrics, "quality": quality_of(case, state=state)}
