"""The model of a case, found; a checkpoint is converted before, in a process of its own."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path

from flexq_ft.errors import LaunchError
from flexq_ft.orchestrate.bench.case import Case as BenchCase
from flexq_ft.orchestrate.bench.case import Subject, find_subject
from flexq_ft.orchestrate.cli.console import console
from flexq_ft.orchestrate.sweep.case_config import Case


def subject_of(case: Case, cache_dir: Path | None) -> Subject:
    """Converted into the cache first where need be, in another process: what memory that takes, of
    the host and of a GPU, is none of the case's. Raises LaunchError if that process is killed."""
    if case.synthetic_weights:
        return _subject(case, cache_dir)
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_end_with_case) as process:
        try:
            return process.submit(_subject, case, cache_dir).result()
        except BrokenProcessPool as error:
            raise LaunchError(
                f"the process that converts {case.model} was killed.",
                cause="the host had too little memory, unless somebody ended it.",
                hint=f"flexq-ft convert {case.model} OUT where there is more, and OUT as the model",
            ) from error


def _end_with_case() -> None:
    """In the process that converts. It has the output that a sweep reads to its end, and would wait
    for work for ever when its case was killed."""
    case = parent_process()
    assert case is not None

    def watch() -> None:
        case.join()
        os._exit(LaunchError.exit_code)

    threading.Thread(target=watch, daemon=True).start()


def _subject(case: Case, cache_dir: Path | None) -> Subject:
    return find_subject(
        as_bench_case(case),
        cache_dir=cache_dir,
        notify=console.info,
        progress=None,
        preparation=case.preparation(),
    )


def as_bench_case(case: Case) -> BenchCase:
    """The same point as `flexq-ft bench latency` names it."""
    same = ("model", "synthetic_weights", "scheme", "policy", "dtype", "lm_head", "step_kernel",
            "tp", "device", "batch", "prompt_tokens", "output_tokens", "seed")  # fmt: skip
    values = {name: getattr(case, name) for name in same}
    return BenchCase(is_shape=case.synthetic_weights, **values)
