"""Opens the engines of a group of cases, together where memory allows, and measures them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexq_ft.errors import OutOfMemoryError
from flexq_ft.orchestrate import world
from flexq_ft.orchestrate.bench.case import Case, Subject, find_subject
from flexq_ft.orchestrate.bench.measure import Repeat, Runner, run_rounds
from flexq_ft.orchestrate.bench.roofline import mean_context
from flexq_ft.orchestrate.bench.row import Machine, Row, failed_row, host_load, make_row
from flexq_ft.orchestrate.devices import Device, choose_device
from flexq_ft.orchestrate.engine.client import EngineClient
from flexq_ft.orchestrate.engine.open import open_engine
from flexq_ft.orchestrate.engine.options import EngineOptions
from flexq_ft.orchestrate.gpu_state import GpuState, read_states

if TYPE_CHECKING:
    from flexq_ft.converter.progress import ProgressSink

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of a whole command. warm_ups: at most so many requests; profile: nodes of a step too."""

    repeat: Repeat
    warm_ups: int = 20
    profile: bool = False
    peak_flops: float | None = None
    cache_dir: Path | None = None


@dataclass
class _Opened:
    case: Case
    subject: Subject
    runner: Runner
    machine: Machine


class Session:
    """Measures groups of cases, one group after another.

    notify: of what a user should know; detail: of each round; report_error: of a case that failed,
    which becomes a row and does not end the others.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        notify: Note,
        detail: Note,
        report_error: Callable[[Exception], dict[str, Any]],
        progress: ProgressSink | None = None,
    ) -> None:
        self._settings = settings
        self._notify = notify
        self._detail = detail
        self._report_error = report_error
        self._progress = progress
        self._load = host_load()
        self._at_start: dict[int, GpuState] = {}
        self._bandwidths: dict[tuple[str, int, int | None], float] = {}
        self._warned: set[str] = set()

    def measure(self, cases: Sequence[Case]) -> list[Row]:
        """The rows of one group, in its order."""
        together = len(cases) > 1 and world.world_from_environment() is None
        if together:
            try:
                return self._together(cases)
            except OutOfMemoryError as error:
                self._once(f"one scheme after another, not in turns: {error.message}")
            except Exception:  # which of them it was is found when each runs alone
                self._detail("a case failed; each is measured alone")
        rows: list[Row] = []
        for case in cases:
            try:
                rows += self._together([case])
            except Exception as error:
                rows.append(failed_row(case, self._report_error(error)))
        return rows

    def _together(self, cases: Sequence[Case]) -> list[Row]:
        with ExitStack() as stack:
            opened = [self._open(case, stack) for case in cases]

            def started() -> None:
                for one in opened:
                    one.machine.before = _states(one.machine)

            run_rounds(
                [one.runner for one in opened],
                self._settings.repeat,
                warm_ups=self._settings.warm_ups,
                started=started,
                observe=self._detail,
            )
            for one in opened:
                one.machine.after = _states(one.machine)
            return [self._row(one, interleaved=len(opened) > 1) for one in opened]

    def _open(self, case: Case, stack: ExitStack) -> _Opened:
        subject = find_subject(
            case,
            cache_dir=self._settings.cache_dir,
            notify=self._notify,
            progress=self._progress,
        )
        ranks = world.join(case.tp)
        device = choose_device(
            case.device,
            scheme=subject.scheme,
            dtype=subject.dtype,
            ranks=case.tp if ranks is None else ranks.local_size,
            notify=self._once,
        )
        case = replace(case, device=device.label() if case.tp == 1 else device.kind)
        machine = self._machine(case, device)
        engine = stack.enter_context(closing(open_engine(_options(case, subject, device), ranks)))
        check_room(engine, case)
        runner = Runner(
            case.label(), engine, case.batch, case.prompt_tokens, case.output_tokens, case.seed
        )
        return _Opened(case, subject, runner, machine)

    def _machine(self, case: Case, device: Device) -> Machine:
        """What can be learned only before the first engine is open comes first."""
        machine = Machine(device, case.tp, 0.0, self._settings.peak_flops, self._load)
        if device.kind == "cuda":
            used = range(device.gpu, device.gpu + case.tp)
            new = [gpu for gpu in used if gpu not in self._at_start]
            self._at_start |= dict(zip(new, read_states(new), strict=True))
            machine.at_start = [self._at_start[gpu] for gpu in used]
        key = (device.kind, device.gpu, case.threads)
        if key not in self._bandwidths:
            self._bandwidths[key] = measure_bandwidth(device, case)
            self._detail(f"{device.label()} reads {self._bandwidths[key] / 1e9:,.1f} GB/s")
        machine.read_bandwidth = self._bandwidths[key]
        return machine

    def _row(self, one: _Opened, *, interleaved: bool) -> Row:
        row = make_row(one.case, one.subject, one.runner, one.machine, interleaved=interleaved)
        if row["prefill"]["device_ms"] is None:
            self._once("the engine gave no device times of its steps: wall clock only")
        if self._settings.profile and one.machine.device.kind == "cpu":
            self._once("no profile: the nodes of a step are timed on GPUs only")
        elif self._settings.profile:
            context = round(mean_context(one.case.prompt_tokens, one.case.output_tokens))
            row["profile"] = one.runner.engine.step_profile(one.case.batch, context)
        return row

    def _once(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            self._notify(line)


def measure_bandwidth(device: Device, case: Case) -> float:
    """Bytes per second that one GPU, or all threads of the host, can read."""
    from flexq_ft import _native

    threads = (case.threads or 0) * case.tp
    return _native.measure_read_bandwidth(device=device.kind, gpu=device.gpu, threads=threads)


def _states(machine: Machine) -> list[GpuState]:
    if machine.device.kind == "cpu":
        return []
    return read_states(range(machine.device.gpu, machine.device.gpu + machine.ranks))


def _options(case: Case, subject: Subject, device: Device) -> EngineOptions:
    return EngineOptions(
        model_dir=str(subject.found.folder),
        tensor_parallel_size=case.tp,
        scheme=subject.found.scheme,
        policy=subject.found.policy,
        dtype=subject.found.dtype,
        lm_head=subject.found.lm_head,
        max_len=case.longest,
        max_batch=case.batch,
        threads=case.threads or 0,
        device=device.kind,
        gpu=device.gpu,
        prefill_tokens=case.prefill_chunk or 0,
        graphs=case.graphs,
        step_kernel=case.step_kernel,
        synthetic_weights=case.synthetic_weights,
    )


def check_room(engine: EngineClient, case: Case) -> None:
    """A cache too small for the batch would make sequences wait, which is not what is timed."""
    needed = case.batch * case.longest
    if engine.info.kv_tokens < needed:
        raise OutOfMemoryError(
            f"the KV cache has room for {engine.info.kv_tokens:,} tokens, and {case.label()} needs"
            f" {needed:,}.",
            hint="a smaller --batch, or fewer tokens",
        )
