"""The conversion: plan, compare with what is there, have the units encoded, put in place."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from flexq_ft import _native
from flexq_ft.converter.calibrator import Calibrator
from flexq_ft.converter.encoder import Encoder
from flexq_ft.converter.existing import examine
from flexq_ft.converter.folder import FOLDER_NAME
from flexq_ft.converter.ini import render_ini
from flexq_ft.converter.jobs import Job
from flexq_ft.converter.manifest import dump_json
from flexq_ft.converter.options import ConvertOptions
from flexq_ft.converter.planning import ConversionPlan, make_plan
from flexq_ft.converter.progress import ProgressSink, SilentProgress
from flexq_ft.converter.report import Quality, quality_report
from flexq_ft.converter.source import Source, hash_files, open_source
from flexq_ft.converter.tied_head import refuse_other_head
from flexq_ft.converter.transforms import SmoothedSource, Smoothing, apply_transforms
from flexq_ft.converter.writer import FolderWriter, UnitRecord
from flexq_ft.errors import ConfigError, WeightError

__all__ = ["ConvertReport", "FolderReport", "convert", "plan"]


_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """action: written | resumed | verified | repaired."""

    path: Path
    tp: int
    action: str
    files: int
    total_bytes: int
    bits_per_weight: float  # of the linears, scales included


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    plan: ConversionPlan
    folders: tuple[FolderReport, ...]
    quality: tuple[Quality, ...]  # empty for float schemes
    calibration: str  # what was calibrated on; empty without a calibration in this run
    seconds: float


def plan(source: str | Path, options: ConvertOptions) -> ConversionPlan:
    """What `convert` would do. Reads headers only and writes nothing."""
    opened = open_source(source)
    try:
        return make_plan(apply_transforms(opened, options), options)
    finally:
        opened.close()


def convert(
    source: str | Path,
    out: str | Path,
    options: ConvertOptions,
    *,
    progress: ProgressSink | None = None,
) -> ConvertReport:
    """Writes `out/<tp>-gpu` for every size in options.tp.

    Resumes after a kill. A complete folder of the same source and options is verified, and
    repaired where needed; another one is a ConfigError unless options.force. A WeightError leaves
    no partial output.
    """
    begin = time.monotonic()
    opened = open_source(source)
    try:
        transformed = apply_transforms(opened, options)
        conversion = _Conversion(transformed, Path(out), options, progress or SilentProgress())
        refuse_other_head(opened, conversion.plan.units)
        folders = conversion.run()
    finally:
        opened.close()
    return ConvertReport(
        plan=conversion.plan,
        folders=folders,
        quality=conversion.quality(),
        calibration=conversion.calibrated,
        seconds=time.monotonic() - begin,
    )


class _Conversion:
    def __init__(
        self, source: Source, out: Path, options: ConvertOptions, progress: ProgressSink
    ) -> None:
        self.plan = make_plan(source, options)
        self._source = source
        self._out = out
        self._options = options
        self._progress = progress
        self._sha256 = ""
        self._calibrator: Calibrator | None = None
        identity = self._identity()
        self._jobs = [
            Job(
                target,
                FolderWriter(out / target.folder_name, identity | {"tp": target.shards.size}),
            )
            for target in self.plan.targets
        ]

    def run(self) -> tuple[FolderReport, ...]:
        if self._out.exists() and not self._out.is_dir():
            raise ConfigError(f"{self._out} is not a folder", hint="name another OUT")
        if FOLDER_NAME.fullmatch(self._out.resolve().name):
            raise ConfigError(
                f"OUT is {self._out}, which is how a folder inside OUT is named",
                cause="in there, none would be found",
                hint=f"{self._out.parent} as OUT",
            )
        for job in self._jobs:
            job.writer.recover()
        if any(job.writer.final.exists() for job in self._jobs):
            self._sha256 = hash_files(self._source.source_files())
            self._examine()
        open_jobs = [job for job in self._jobs if job.action != "verified"]
        self._check_space(open_jobs)
        calibration = self._options.calibration
        if open_jobs and calibration is not None:
            self._calibrator = Calibrator(self.plan, self._source, calibration)
        created = not self._out.exists()
        try:
            self._begin(open_jobs)
            if self._calibrator is not None and self.plan.header.smoothing is not None:
                self._smooth(open_jobs, self._calibrator)
            self._write(open_jobs)
        except WeightError:
            for job in open_jobs:
                job.writer.discard()
            if created:
                with suppress(OSError):
                    self._out.rmdir()
            raise
        except OSError as error:
            if error.errno in _FULL:
                raise ConfigError(
                    f"the disk of {self._out} is full",
                    cause=os.strerror(error.errno or 0),
                    hint="free space: the same command goes on where it stopped",
                ) from error
            raise
        finally:
            for job in open_jobs:
                job.writer.close()
        return tuple(self._folder_report(job) for job in self._jobs)

    @property
    def calibrated(self) -> str:
        """What was calibrated on."""
        return "" if self._calibrator is None else self._calibrator.used

    def quality(self) -> tuple[Quality, ...]:
        """Rows of the first folder, in the model's order."""
        job = self._jobs[0]
        records = job.existing.good if job.action == "verified" and job.existing else None
        return _quality_rows(self.plan, records or job.writer.done)

    def _identity(self) -> dict[str, Any]:
        header = self.plan.header
        stats = [(path.name, path.stat()) for path in self._source.source_files()]
        return {
            "tool_version": _native.__version__,
            "model": header.config.to_manifest(),
            "scheme": header.scheme.name,
            "dtype": header.dtype,
            "policy": header.policy,
            "transforms": header.transforms,
            "smoothing": header.smoothing,
            "static": header.scheme.static,
            "rounding": header.rounding,
            "lm_head": header.lm_head,
            "source": sorted([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats),
        }

    def _examine(self) -> None:
        """Compares complete folders with what would be written; see Existing."""
        for job in self._jobs:
            final = job.writer.final
            if not final.exists() or self._options.force:
                continue
            job.existing = examine(final, self.plan, job.target, self._sha256)
            if job.existing.difference:
                raise ConfigError(
                    f"{final} is complete and came from another source or other options",
                    cause=job.existing.difference,
                    hint="--force converts again and replaces it; or choose another folder",
                )
            job.smoothing = job.existing.smoothing
            small = self._small_files(job, job.existing.good)
            intact = job.existing.complete and all(
                _content(final / name) == content for name, content in small.items()
            )
            job.action = "verified" if intact else "repaired"

    def _check_space(self, jobs: Sequence[Job]) -> None:
        needed = sum(job.target.total_bytes for job in jobs)
        for job in jobs:
            if job.writer.partial.is_dir():
                needed -= sum(path.stat().st_size for path in job.writer.partial.iterdir())
        base = self._out
        while not base.exists():
            base = base.parent
        free = shutil.disk_usage(base).free
        if needed > free:
            raise ConfigError(
                f"{self._out} needs {needed:,} bytes, but its disk has {free:,} left",
                hint="free space, or choose another folder",
            )

    def _begin(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            keep = job.existing.good if job.existing else None
            job.writer.begin(restart=self._options.force, keep=keep)
            if job.writer.done and job.action == "written":
                job.action = "resumed"

    def _smooth(self, jobs: Sequence[Job], calibrator: Calibrator) -> None:
        """From here on tensors are read smoothed. Factors that a folder holds already serve all:
        other ones would not fit its finished units."""
        held = [path for job in self._jobs if (path := job.factors) is not None]
        smoothing = (
            Smoothing.load(held[0]) if held else calibrator.smoothing(self._source, self._progress)
        )
        for job in jobs:
            job.hold(smoothing)
        self._source = SmoothedSource(self._source, smoothing)

    def _write(self, jobs: Sequence[Job]) -> None:
        encoder = Encoder(self.plan, self._source, self._progress)
        # The source's hash needs a pass over its files; it runs beside the conversion.
        encoder.run(jobs, self._calibrator, beside=None if self._sha256 else self._hash_source)
        for job in jobs:
            job.writer.finish(self._small_files(job, job.writer.done))

    def _hash_source(self, over: Event) -> None:
        self._sha256 = hash_files(self._source.source_files(), over=over)

    def _small_files(self, job: Job, records: dict[str, UnitRecord]) -> dict[str, bytes]:
        header = self.plan.header
        target = job.target
        digests = {
            name: digest
            for record in records.values()
            for name, (_, digest) in record.files.items()
        }
        files = {
            name: (spec, digests[name]) for name, spec in target.files.items() if name in digests
        }
        rows = _quality_rows(self.plan, records)
        ini = render_ini(
            header.config,
            section=self.plan.architecture.ini_section,
            dtype=header.dtype,
            int8_mode=header.scheme.int8_mode,
            tp=target.shards.size,
            group_size=header.scheme.group_size,
        )
        manifest = header.manifest(
            target.shards, source_sha256=self._sha256, files=files, smoothing=job.smoothing
        )
        return {
            **self._source.extra_files(),
            "config.ini": ini.encode(),
            "manifest.json": dump_json(manifest),
            "quant_report.json": dump_json(quality_report(list(rows), scheme=header.scheme.name)),
        }

    def _folder_report(self, job: Job) -> FolderReport:
        return FolderReport(
            path=job.writer.final,
            tp=job.target.shards.size,
            action=job.action,
            files=len(job.target.files),
            total_bytes=job.target.total_bytes,
            bits_per_weight=self.plan.bits_per_weight(job.target),
        )


def _quality_rows(plan: ConversionPlan, records: dict[str, UnitRecord]) -> tuple[Quality, ...]:
    rows = (records[unit.stem].quality for unit in plan.units if unit.stem in records)
    return tuple(Quality(**row) for row in rows if row)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
