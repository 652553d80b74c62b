"""Timed requests: warm-up until steady, then rounds in which the schemes take turns (A-B-A-B).

What drifts (clocks, temperature, other work) then meets all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from flexq_ft.orchestrate.bench.samples import STEADY_CV, variation
from flexq_ft.orchestrate.engine.client import EngineClient, Request, TokenEvent
from flexq_ft.orchestrate.sampling import SamplingParams
from flexq_ft.orchestrate.timing import Timing, batch_timing, random_prompts

_STEADY_LAST = 5  # requests that must agree
_WARM_UP_MIN = 3


@dataclass(frozen=True)
class Repeat:
    """Rounds: at least `least`, at most `most`, and between them until steady."""

    least: int = 5
    most: int = 30


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One request. Device times are per step, and None where the engine gave another number of
    them than it made steps."""

    timing: Timing
    prefill_device_ms: float | None
    decode_device_ms: list[float] | None

    @property
    def steadiness_ms(self) -> float:
        """What warm-up and rounds watch: the time per output token, or of the prefill alone."""
        return self.timing.ttft_ms if self.timing.tpot_ms is None else self.timing.tpot_ms


@dataclass(frozen=True)
class WarmUp:
    """How long it took. cv: of its last requests."""

    requests: int
    is_steady: bool
    cv: float | None


@dataclass
class Runner:
    """One engine and the requests that it has served. Prompts differ at every request."""

    name: str
    engine: EngineClient
    batch: int
    prompt_tokens: int
    output_tokens: int
    seed: int
    warm_up: WarmUp | None = None
    samples: list[Sample] = field(default_factory=list)
    _served: int = 0

    def request(self) -> Sample:
        """Greedy, all prompts at once, exactly output_tokens each."""
        prompts = random_prompts(
            self.engine.info.vocab_size,
            batch=self.batch,
            tokens=self.prompt_tokens,
            seed=(self.seed, self._served),
        )
        self._served += 1
        params = SamplingParams(
            max_tokens=self.output_tokens, ignore_eos=True, seed=self.seed
        ).engine_fields()
        requests = [Request(index, prompt, params) for index, prompt in enumerate(prompts)]
        self.engine.take_step_times()
        with closing(self.engine.generate(requests)) as steps:
            events = list(steps)
        return make_sample(
            events, self.engine.take_step_times(), prompt_tokens=self.batch * self.prompt_tokens
        )

    def warm(self, limit: int) -> None:
        """Until the last requests agree, or the limit."""
        seen: list[float] = []
        while True:
            seen.append(self.request().steadiness_ms)
            cv = variation(seen[-_STEADY_LAST:])
            is_steady = len(seen) >= _WARM_UP_MIN and cv is not None and cv < STEADY_CV
            if is_steady or len(seen) >= limit:
                self.warm_up = WarmUp(len(seen), is_steady, cv)
                return

    def is_steady(self) -> bool:
        cv = variation([sample.steadiness_ms for sample in self.samples])
        return cv is not None and cv < STEADY_CV


def make_sample(
    steps: Sequence[Sequence[TokenEvent]], step_ms: Sequence[float], *, prompt_tokens: int
) -> Sample:
    """Of the events of each step and the device's times of the same steps.

    Prefill are the steps until every sequence has its first token, decode those after it.
    """
    events = [event for step in steps for event in step]
    timing = batch_timing(events, prompt_tokens=prompt_tokens)
    matches = len(step_ms) == len(steps)
    prefill = _prefill_steps(steps)
    return Sample(
        timing=timing,
        prefill_device_ms=sum(step_ms[:prefill]) if matches else None,
        decode_device_ms=list(step_ms[prefill:]) if matches else None,
    )


def _prefill_steps(steps: Sequence[Sequence[TokenEvent]]) -> int:
    everyone = {event.id for step in steps for event in step}
    started: set[int] = set()
    for count, step in enumerate(steps, start=1):
        started.update(event.id for event in step)
        if started == everyone:
            return count
    return len(steps)


def run_rounds(
    runners: Sequence[Runner],
    repeat: Repeat,
    *,
    warm_ups: int,
    started: Callable[[], None] = lambda: None,
    observe: Callable[[str], None] = lambda line: None,
) -> None:
    """Fills the runners' samples. started: called between warm-up and the first timed request."""
    for runner in runners:
        runner.warm(warm_ups)
        assert runner.warm_up is not None
        steady = "steady" if runner.warm_up.is_steady else "not steady yet"
        observe(f"{runner.name}: {runner.warm_up.requests} requests, {steady}")
    started()
    for count in range(1, repeat.most + 1):
        for runner in runners:
            runner.samples.append(runner.request())
        observe(f"round {count} of at most {repeat.most}")
        if count >= repeat.least and all(runner.is_steady() for runner in runners):
            return
