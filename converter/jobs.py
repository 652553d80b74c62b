"""Job: one target folder of a conversion, and what is known of it so far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_128_hexdigest

from flexq_ft.converter.existing import Existing, factors_record
from flexq_ft.converter.planning import Target
from flexq_ft.converter.shards import ShardPlan
from flexq_ft.converter.transforms import Smoothing
from flexq_ft.converter.verification import FACTORS_FILE
from flexq_ft.converter.writer import FolderWriter, HashedFile

__all__ = ["Job", "UnitOutputs"]


class Job:
    """smoothing: the result that the manifest tells, of a smoothed folder."""

    def __init__(self, target: Target, writer: FolderWriter) -> None:
        self.target = target
        self.writer = writer
        self.action = "written"
        self.existing: Existing | None = None
        self.smoothing: dict[str, Any] = {}

    @property
    def factors(self) -> Path | None:
        """The smoothing factors that the folder holds already."""
        if self.action == "verified":
            return self.writer.final / FACTORS_FILE
        return self.writer.partial / FACTORS_FILE if FACTORS_FILE in self.writer.done else None

    def hold(self, smoothing: Smoothing) -> None:
        """Keeps the factors in the folder in the making, as its first unit; units that were made
        with others are dropped."""
        content = np.frombuffer(smoothing.to_bytes(), np.uint8)
        self.smoothing = {
            "alphas": smoothing.alphas,
            "tokens": smoothing.tokens,
            "factors": {"bytes": content.size, "xxh3_128": xxh3_128_hexdigest(content.data)},
        }
        record = factors_record(self.smoothing)
        if self.writer.done.get(FACTORS_FILE) != record:
            self.writer.restart()
            file = self.writer.open(FACTORS_FILE)
            file.write(content)
            file.close()
            self.writer.commit(FACTORS_FILE, record)


class UnitOutputs:
    """The open files of one unit, in the folders that lack it."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = {job.target.shards.size: job for job in jobs}
        self._files: dict[int, dict[str, HashedFile]] = {size: {} for size in self._jobs}

    @property
    def plans(self) -> Sequence[ShardPlan]:
        return [job.target.shards for job in self._jobs.values()]

    def open(self, plan: ShardPlan, file: str) -> HashedFile:
        handle = self._jobs[plan.size].writer.open(file)
        self._files[plan.size][file] = handle
        return handle

    def close(self) -> dict[int, dict[str, tuple[int, str]]]:
        return {
            size: {name: handle.close() for name, handle in files.items()}
            for size, files in self._files.items()
        }
