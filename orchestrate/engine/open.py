"""Where an engine's ranks are: in this process, in a world that was joined, or started for it."""

from __future__ import annotations

from typing import Any

from flexq_ft.orchestrate.engine.client import EngineClient
from flexq_ft.orchestrate.engine.info import describe
from flexq_ft.orchestrate.engine.local import LocalEngine
from flexq_ft.orchestrate.engine.options import EngineOptions
from flexq_ft.orchestrate.engine.single_rank import LoadProgress, SingleRank


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
        from flexq_ft.orchestrate.engine.remote import RemoteEngine

        return RemoteEngine(options)
    single = SingleRank(options, progress=progress)
    return LocalEngine(single, describe(single.engine, options))
