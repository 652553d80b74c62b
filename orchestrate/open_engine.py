"""Where an engine's ranks are: in this process, in a world that was joined, or started for it."""

from __future__ import annotations

from typing import Any

from flexq_ft.orchestrate.engine import (
    EngineClient,
    EngineOptions,
    LoadProgress,
    LocalEngine,
    SingleRank,
    describe,
)


def open_engine(
    options: EngineOptions, ranks: Any = None, *, progress: LoadProgress | None = None
) -> EngineClient:
    """On the ranks of a world that was joined, on ranks of our own, or in this process, which alone
    says how far the load is."""
    if ranks is not None:
        from flexq_ft.orchestrate.worker import Leader

        leader = Leader(options, ranks)
        return LocalEngine(leader, describe(leader.engine, options))
    if options.tensor_parallel_size > 1:
        from flexq_ft.orchestrate.launcher import RemoteEngine

        return RemoteEngine(options)
    single = SingleRank(options, progress=progress)
    return LocalEngine(single, describe(single.engine, options))
