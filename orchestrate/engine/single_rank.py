"""SingleRank: this process's rank of an engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.engine.options import EngineOptions

# Called as weights are read, with the bytes that are done and all that there are.
LoadProgress = Callable[[int, int], None]


_process: int | None = None  # that had an engine of several threads, or on a GPU


def refuse_after_fork() -> None:
    """A fork has none of the threads, and no GPU context, of the process that it is of: its first
    parallel loop would wait for ever."""
    if _process not in (None, os.getpid()):
        raise ConfigError(
            "this process is a fork of one that had an LLM, and cannot run any.",
            cause="threads and GPU contexts do not survive a fork.",
            hint='multiprocessing.set_start_method("spawn"), or no LLM before the fork',
        )


class SingleRank:
    """`_native.Engine` on one rank, with its peak memory beside.

    On the CPU that is the process's largest resident set; on a GPU all is allocated at the start,
    and the peak is the sum of what the engine holds.
    """

    def __init__(
        self, options: EngineOptions, ranks: Any = None, progress: LoadProgress | None = None
    ) -> None:
        from flexq_ft import _native

        refuse_after_fork()
        gpu = options.gpu + (0 if ranks is None else ranks.local_rank)
        self._on_gpu = options.device == "cuda"
        self._peak = _native.peak_resident_bytes
        self.engine = _native.Engine(
            options.model_dir,
            dtype=options.dtype,
            scheme=options.scheme,
            policy=options.policy,
            lm_head=options.lm_head,
            max_len=options.max_len,
            max_batch=options.max_batch,
            threads=options.threads,
            comm=None if ranks is None else ranks.comm(options.device, gpu),
            device=options.device,
            gpu=gpu,
            prefill_tokens=options.prefill_tokens,
            graphs=options.graphs,
            step_kernel=options.step_kernel,
            synthetic_weights=options.synthetic_weights,
            progress=progress,
        )
        if self._on_gpu or self.engine.threads > 1:
            global _process
            _process = os.getpid()

    def __getattr__(self, name: str) -> Any:
        refuse_after_fork()
        return getattr(self.engine, name)

    def peak_memory_bytes(self) -> int:
        if self._on_gpu:
            return sum(self.engine.memory().values())
        return int(self._peak())
