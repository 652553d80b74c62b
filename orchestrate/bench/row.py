"""A result row from its samples: both phases, their share of the machine, memory, and flags."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flexq_ft.orchestrate import envelope
from flexq_ft.orchestrate.bench.case import Case, Subject, reproduce_line
from flexq_ft.orchestrate.bench.measure import Runner
from flexq_ft.orchestrate.bench.roofline import (
    SUSPECT_SHARE,
    decode_bytes,
    mean_context,
    prefill_operations,
    share_of_bandwidth,
)
from flexq_ft.orchestrate.bench.samples import STEADY_CV, summary
from flexq_ft.orchestrate.devices import Device, gpus
from flexq_ft.orchestrate.gpu_state import GpuState

Row = dict[str, Any]

_BUSY_PERCENT = 5.0


@dataclass
class Machine:
    """What is known of the device around the timed requests. states: one for each GPU in use."""

    device: Device
    ranks: int
    read_bandwidth: float  # bytes per second, of one GPU or of the host
    peak_flops: float | None = None
    load: float = 0.0  # of the host, as a share of its cores, before anything was started
    at_start: list[GpuState] = field(default_factory=list)  # before this command used a GPU
    before: list[GpuState] = field(default_factory=list)  # warmed up
    after: list[GpuState] = field(default_factory=list)

    def name(self) -> str:
        if self.device.kind == "cpu":
            return envelope.cpu_name()
        return str(gpus()[self.device.gpu]["name"])

    def to_json(self, threads: int) -> dict[str, Any]:
        return {**self.state(threads), "read_bandwidth_gb_s": self.read_bandwidth / 1e9}

    def state(self, threads: int) -> dict[str, Any]:
        """All but how fast it reads."""
        return {
            "device": self.device.label(self.ranks),
            "name": self.name(),
            "ranks": self.ranks,
            "threads": threads,
            "gpus_before": [state.to_json() for state in self.before],
            "gpus_after": [state.to_json() for state in self.after],
        }

    def flags(self) -> list[str]:
        """throttled and busy, of the times that were just taken."""
        flags = []
        if any(state.slowdowns for state in (*self.before, *self.after)):
            flags.append("throttled")
        if self._is_busy():
            flags.append("busy")
        return flags

    def _is_busy(self) -> bool:
        if self.device.kind == "cpu":
            return self.load > 0.5
        if any(s.pids or (s.utilization_percent or 0) > _BUSY_PERCENT for s in self.at_start):
            return True
        # Process numbers inside a container may be the host's, so only their count says anything:
        # a rank on each GPU, and this process on the first.
        return any(len(state.pids) > 2 for state in self.after)


def host_load() -> float:
    """Of the last minute, as a share of the cores."""
    return os.getloadavg()[0] / envelope.available_cores()


def make_row(
    case: Case, subject: Subject, runner: Runner, machine: Machine, *, interleaved: bool
) -> Row:
    """The finished row of one case."""
    info = runner.engine.info
    prefill = _prefill(case, subject, runner, machine)
    decode = _decode(case, subject, runner, machine) if case.output_tokens > 1 else None
    assert runner.warm_up is not None
    timings = [sample.timing for sample in runner.samples]
    return {
        "config": case.to_json(),
        "model": {
            "name": info.name,
            "digest": model_digest(subject.found.folder),
            "scheme": subject.scheme,
            "policy": info.policy,
            "dtype": info.dtype,
            "lm_head": info.lm_head,
            "parameters": subject.sizes.parameters(),
        },
        "machine": {
            **machine.to_json(info.threads),
            "gemm_note": info.gemm_note,
            "step_note": info.step_note,
            "step_kernel_batch": info.step_kernel_batch,
        },
        "prefill": prefill,
        "decode": decode,
        # Not the process's peak: it holds the engines of all schemes that take turns.
        "memory_bytes": {**info.memory_bytes, "total": sum(info.memory_bytes.values())},
        "warm_up": asdict(runner.warm_up),
        "rounds": len(runner.samples),
        "interleaved": interleaved,
        "flags": _flags(prefill, decode, machine),
        "samples": {
            "ttft_ms": [timing.ttft_ms for timing in timings],
            "tpot_ms": [timing.tpot_ms for timing in timings if timing.tpot_ms is not None],
            "prefill_device_ms": _present([s.prefill_device_ms for s in runner.samples]),
            "decode_device_ms": _present([_mean(s.decode_device_ms) for s in runner.samples]),
        },
        "profile": None,
        "reproduce": reproduce_line(case, rounds=len(runner.samples)),
        "error": None,
    }


def failed_row(case: Case, error: dict[str, Any]) -> Row:
    """A case that could not be measured."""
    return {
        "config": case.to_json(),
        **dict.fromkeys(
            (
                "model", "machine", "prefill", "decode", "memory_bytes", "warm_up", "rounds",
                "interleaved", "samples", "profile",
            )
        ),
        "flags": [],
        "reproduce": reproduce_line(case, rounds=1),
        "error": error,
    }  # fmt: skip


def _prefill(case: Case, subject: Subject, runner: Runner, machine: Machine) -> dict[str, Any]:
    tokens = case.batch * case.prompt_tokens
    wall = summary([sample.timing.ttft_ms for sample in runner.samples])
    device = summary(_present([sample.prefill_device_ms for sample in runner.samples]))
    assert wall is not None
    best = wall if device is None else device
    operations = prefill_operations(
        subject.sizes, batch=case.batch, prompt_tokens=case.prompt_tokens
    )
    per_second = operations / machine.ranks / (1e-3 * best["p50"])
    return {
        "tokens": tokens,
        "ttft_ms": wall,
        "device_ms": device,
        "tok_s": 1e3 * tokens / wall["p50"],
        "device_tok_s": None if device is None else 1e3 * tokens / device["p50"],
        "operations": operations,
        "tflops_per_rank": per_second / 1e12,
        "share_of_peak": None if machine.peak_flops is None else per_second / machine.peak_flops,
    }


def _decode(case: Case, subject: Subject, runner: Runner, machine: Machine) -> dict[str, Any]:
    wall = summary(_present([sample.timing.tpot_ms for sample in runner.samples]))
    steps = [ms for sample in runner.samples for ms in sample.decode_device_ms or []]
    device = summary(steps)
    assert wall is not None
    best = wall if device is None else device
    context = mean_context(case.prompt_tokens, case.output_tokens)
    needed = decode_bytes(
        subject.sizes,
        scheme=subject.scheme,
        dtype=runner.engine.info.dtype,
        lm_head=runner.engine.info.lm_head,
        ranks=case.tp,
        batch=case.batch,
        context=context,
    )
    # The ranks of a host share its memory; a GPU has its own.
    sharing = case.tp if machine.device.kind == "cpu" else 1
    return {
        "tokens": case.batch * (case.output_tokens - 1),
        "tpot_ms": wall,
        "device_step_ms": device,
        "tok_s": 1e3 * case.batch / wall["p50"],
        "device_tok_s": None if device is None else 1e3 * case.batch / device["p50"],
        "mean_context": context,
        "bytes_per_rank": needed,
        "share_of_bandwidth": share_of_bandwidth(
            needed["total"] * sharing, best["p50"], machine.read_bandwidth
        ),
    }


def _flags(prefill: dict[str, Any], decode: dict[str, Any] | None, machine: Machine) -> list[str]:
    flags = machine.flags()
    shares = [prefill["share_of_peak"], decode and decode["share_of_bandwidth"]]
    if any(share is not None and share > SUSPECT_SHARE for share in shares):
        flags.append("suspect")
    watched = prefill["ttft_ms"] if decode is None else decode["tpot_ms"]
    if watched["cv"] is None or watched["cv"] >= STEADY_CV:
        flags.append("unsteady")
    return flags


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def _present(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def model_digest(folder: Path) -> str:
    """Of what names every file and its hash, or else of the sizes: `sha256:…`."""
    named = [folder] if folder.is_file() else [folder / "manifest.json", folder / "config.ini"]
    path = next(path for path in named if path.is_file())
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
