"""Encoder: the units of a plan, streamed from the source into the folders that lack them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from flexq_ft.converter.architectures import Unit
from flexq_ft.converter.calibrator import Calibrator
from flexq_ft.converter.jobs import Job, UnitOutputs
from flexq_ft.converter.planning import ConversionPlan
from flexq_ft.converter.progress import ProgressSink
from flexq_ft.converter.rounding import Rounder, ScaleSearch
from flexq_ft.converter.schemes.int6_codec import Int6Codec
from flexq_ft.converter.source import Source
from flexq_ft.converter.writer import UnitRecord
from flexq_ft.errors import InternalError

__all__ = ["Encoder"]

# A unit, and the folders that lack it.
_Work = tuple[Unit, list[Job]]


class Encoder:
    """Each unit is read and rounded once for all folders, and committed to each."""

    def __init__(self, plan: ConversionPlan, source: Source, progress: ProgressSink) -> None:
        self._plan = plan
        self._source = source
        self._progress = progress
        self._lock = threading.Lock()

    def run(
        self,
        jobs: Sequence[Job],
        calibrator: Calibrator | None,
        *,
        beside: Callable[[threading.Event], None] | None = None,
    ) -> None:
        """beside: what else is to be done meanwhile, until its event is set: when encoding failed
        or was interrupted. Where threads fail, the error of one is raised when all have ended; one
        of encoding before one of `beside`."""
        work: list[_Work] = []
        for unit in self._plan.units:
            lacking = [job for job in jobs if unit.stem not in job.writer.done]
            if lacking:
                work.append((unit, lacking))
        self._progress.start(
            task="converting",
            total_bytes=sum(self._bytes_of(unit) for unit, _ in work),
            total_tensors=len(work),
        )
        over = threading.Event()
        with ThreadPoolExecutor(1) as others, ThreadPoolExecutor(self._plan.jobs) as pool:
            try:
                other = None if beside is None else others.submit(beside, over)
                rounding = self._plan.header.rounding
                if rounding is not None and calibrator is not None:
                    self._encode_all(pool, [(*item, None) for item in work if not item[0].linear])
                    linears = [item for item in work if item[0].linear]
                    self._encode_calibrated(pool, linears, calibrator)
                else:
                    rounder = None if rounding is None else ScaleSearch()
                    self._encode_all(pool, [(u, j, rounder if u.linear else None) for u, j in work])
                if other is not None:
                    other.result()
            finally:
                over.set()
                pool.shutdown(wait=True, cancel_futures=True)
                self._progress.finish()

    def _encode_calibrated(
        self, pool: ThreadPoolExecutor, work: Sequence[_Work], calibrator: Calibrator
    ) -> None:
        for rounders in calibrator.rounders(self._source, {unit.linear for unit, _ in work}):
            of_layer = [(unit, jobs, rounders.get(unit.linear)) for unit, jobs in work]
            self._encode_all(pool, [item for item in of_layer if item[2] is not None])

    def _encode_all(
        self, pool: ThreadPoolExecutor, work: Sequence[tuple[Unit, list[Job], Rounder | None]]
    ) -> None:
        futures: list[Future[None]] = [pool.submit(self._encode, *item) for item in work]
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()

    def _encode(self, unit: Unit, jobs: Sequence[Job], rounder: Rounder | None) -> None:
        outputs = UnitOutputs(jobs)
        codec = self._plan.codec(unit) if rounder is None else Int6Codec(rounder)
        try:
            quality = codec.encode(unit, self._source, outputs)
        finally:
            written = outputs.close()
        for job in jobs:
            files = written[job.target.shards.size]
            expected = codec.files(unit, job.target.shards)
            sizes = {name: size for name, (size, _) in files.items()}
            if sizes != {name: spec.nbytes for name, spec in expected.items()}:
                raise InternalError(f"{unit.stem}: wrote {sizes}, planned {dict(expected)}")
            record = UnitRecord(files, quality.to_json() if quality else None)
            with self._lock:
                job.writer.commit(unit.stem, record)
        with self._lock:
            self._progress.advance(tensor=unit.stem, source_bytes=self._bytes_of(unit))

    def _bytes_of(self, unit: Unit) -> int:
        return sum(self._source.tensors[part.name].source_bytes for part in unit.parts)
