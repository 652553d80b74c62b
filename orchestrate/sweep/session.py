"""A loaded model as a case needs it: the engine itself, because whole batches are timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from flexq_ft import _native
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.bench.case import Subject
from flexq_ft.orchestrate.bench.roofline import decode_bytes, mean_context
from flexq_ft.orchestrate.bench.row import Machine, model_digest
from flexq_ft.orchestrate.bench.session import check_room, measure_bandwidth
from flexq_ft.orchestrate.cli.console import console
from flexq_ft.orchestrate.devices import Device, choose_device
from flexq_ft.orchestrate.engine.client import EngineClient, Request
from flexq_ft.orchestrate.engine.open import open_engine
from flexq_ft.orchestrate.engine.options import EngineOptions
from flexq_ft.orchestrate.eval.perplexity import LONGEST_WINDOW
from flexq_ft.orchestrate.gpu_state import GpuState, read_states
from flexq_ft.orchestrate.sampling import SamplingParams
from flexq_ft.orchestrate.sweep.case_config import Case
from flexq_ft.orchestrate.sweep.measure import Served
from flexq_ft.orchestrate.sweep.subject import as_bench_case
from flexq_ft.orchestrate.timing import batch_timing, decode_steps_ms, token_times_ms
from flexq_ft.orchestrate.tokenizer import Tokenizer, why_no_tokenizer

_LOAD_SECONDS = 0.3
_UTILIZATION_SECONDS = 1.5  # the driver averages over up to one


class EngineSession:
    """Implements measure.Session over an engine, on one rank or several."""

    def __init__(
        self,
        case: Case,
        subject: Subject,
        engine: EngineClient,
        machine: Machine,
        memory: OwnMemory,
    ) -> None:
        self._case = case
        self._subject = subject
        self._engine = engine
        self._machine = machine
        self._memory = memory
        self._peak = 0
        self._tokenizer = Tokenizer.load(subject.found.folder)
        self.vocab_size = engine.info.vocab_size
        self.max_positions = subject.sizes.max_positions

    def encode(self, text: str) -> list[int]:
        if self._tokenizer is None:
            raise ConfigError(
                "this model has no tokenizer, so it has no perplexity on a text.",
                cause=why_no_tokenizer(self._subject.found.folder),
                hint="a sweep without quality.ppl, or convert the model with its tokenizer",
            )
        return self._tokenizer.encode(text)

    def request(self, prompts: list[list[int]], *, output_tokens: int) -> Served:
        """Greedy, all prompts at once, exactly output_tokens each."""
        params = SamplingParams(max_tokens=output_tokens, ignore_eos=True, seed=0).engine_fields()
        requests = [Request(index, prompt, params) for index, prompt in enumerate(prompts)]
        with closing(self._engine.generate(requests)) as steps:
            events = [event for step in steps for event in step]
        timing = batch_timing(events, prompt_tokens=sum(map(len, prompts)))
        self._peak = max(self._peak, *(event.peak_memory_bytes for event in events))
        self._memory.look()
        return Served(
            timing=timing, token_ms=token_times_ms(events), step_ms=decode_steps_ms(events)
        )

    def score(self, ids: Sequence[int], /) -> tuple[list[float], list[int]]:
        (scored,) = self._engine.score([ids], [1])
        return scored.logprobs, scored.argmax

    def warmed_up(self) -> None:
        self._machine.before = gpu_states(self._machine.device, self._case.tp)

    def describe(self) -> dict[str, Any]:
        """Model, machine and flags, as rows of bench latency have them."""
        info, machine = self._engine.info, self._machine
        machine.after = gpu_states(machine.device, self._case.tp)
        return {
            "model": {
                "name": info.name,
                "digest": model_digest(self._subject.found.folder),
                "scheme": self._subject.scheme,
                "policy": info.policy,
                "dtype": info.dtype,
                "lm_head": info.lm_head,
                "parameters": self._subject.sizes.parameters(),
            },
            "machine": {
                **machine.state(info.threads),
                "gemm_note": info.gemm_note,
                "step_note": info.step_note,
                "step_kernel_batch": info.step_kernel_batch,
            },
            "flags": machine.flags(),
        }

    def sizes(self) -> dict[str, Any]:
        """Of the requests so far: a quality run that follows is not in them."""
        kinds = self._engine.info.memory_bytes
        process = self._memory.used_bytes()
        return {
            "weights_bytes": self._weights_bytes(),
            "peak_memory_bytes": max(self._peak, process or 0),
            "memory_bytes": {
                **{name: self._case.tp * size for name, size in kinds.items()},
                "process": process,
                "polled": None,
            },
        }

    def _weights_bytes(self) -> int:
        """The files of all ranks; of synthetic weights, what the engines hold."""
        if self._case.synthetic_weights:
            return self._case.tp * self._engine.info.memory_bytes["weights"]
        return sum(file.stat().st_size for file in self._subject.found.folder.glob("*.bin"))

    def bytes_per_step(self, output_tokens: int) -> float:
        """What one GPU, or the host with all its ranks, must read in a decode step."""
        case = self._case
        needed = decode_bytes(
            self._subject.sizes,
            scheme=self._subject.scheme,
            dtype=self._engine.info.dtype,
            lm_head=self._engine.info.lm_head,
            ranks=case.tp,
            batch=case.batch,
            context=mean_context(case.prompt_tokens, output_tokens),
        )
        return needed["total"] * (case.tp if self._machine.device.kind == "cpu" else 1)

    def read_bandwidth_gb_s(self) -> float:
        return measure_bandwidth(self._machine.device, as_bench_case(self._case)) / 1e9


class OwnMemory:
    """What this process takes of its GPU, by the driver's free bytes; nothing on the CPU, or where
    other processes are the ranks. The context itself is not in it: that was made to ask."""

    def __init__(self, device: Device, ranks: int) -> None:
        self._gpu = device.gpu if device.kind == "cuda" and ranks == 1 else None
        self._before = self._least = self._free()

    def look(self) -> None:
        self._least = min(self._least, self._free())

    def used_bytes(self) -> int | None:
        return None if self._gpu is None else self._before - self._least

    def _free(self) -> int:
        return 0 if self._gpu is None else int(_native.gpu_free_bytes(self._gpu))


@contextmanager
def open_session(case: Case, subject: Subject) -> Iterator[EngineSession]:
    """The model of a case, found before, on its device."""
    load = current_load()
    device = choose_device(
        case.device,
        scheme=subject.scheme,
        dtype=subject.dtype,
        ranks=case.tp,
        notify=console.info,
    )
    machine = Machine(device, case.tp, 0.0, load=load, at_start=states_at_start(device, case.tp))
    memory = OwnMemory(device, case.tp)
    engine = open_engine(
        EngineOptions(
            model_dir=str(subject.found.folder),
            tensor_parallel_size=case.tp,
            scheme=subject.found.scheme,
            policy=subject.found.policy,
            dtype=subject.found.dtype,
            lm_head=subject.found.lm_head,
            max_len=_context(case, subject.sizes.max_positions),
            max_batch=case.batch,
            device=device.kind,
            gpu=device.gpu,
            step_kernel=case.step_kernel,
            synthetic_weights=case.synthetic_weights,
        )
    )
    try:
        check_room(engine, as_bench_case(case))
        memory.look()
        yield EngineSession(case, subject, engine, machine, memory)
    finally:
        engine.close()


def current_load() -> float:
    """The share of the host's time that is busy now. The load average of bench latency would still
    have the sweep's last case in it."""
    first = _host_ticks()
    time.sleep(_LOAD_SECONDS)
    busy, total = (now - then for now, then in zip(_host_ticks(), first, strict=True))
    return busy / total if total else 0.0


def _host_ticks() -> tuple[int, int]:
    """Busy and all, since the host began."""
    with Path("/proc/stat").open(encoding="ascii") as lines:
        ticks = [int(word) for word in lines.readline().split()[1:9]]
    idle, waiting = ticks[3:5]
    return sum(ticks) - idle - waiting, sum(ticks)


def states_at_start(device: Device, ranks: int) -> list[GpuState]:
    """Before this case uses the GPUs; the one before may still be in the driver's utilization."""
    states = gpu_states(device, ranks)
    if any(state.utilization_percent for state in states):
        time.sleep(_UTILIZATION_SECONDS)
        states = gpu_states(device, ranks)
    return states


def gpu_states(device: Device, ranks: int) -> list[GpuState]:
    return read_states(range(device.gpu, device.gpu + ranks)) if device.kind == "cuda" else []


def _context(case: Case, positions: int) -> int:
    """Long enough for the requests and for a window, no longer: the cache is sized by it."""
    longest = case.prompt_tokens + case.output_tokens
    if case.quality.ppl is not None:
        longest = max(longest, case.quality.ppl.window or LONGEST_WINDOW)
    return min(longest, positions)
