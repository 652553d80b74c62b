"""EngineInfo: what an engine has loaded, and with which choices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flexq_ft.orchestrate.devices import Device
from flexq_ft.orchestrate.engine.options import EngineOptions


@dataclass(frozen=True)
class EngineInfo:
    """What was loaded, as resolved."""

    model_dir: str
    name: str
    architecture: str
    vocab_size: int
    eos_ids: list[int]
    max_len: int
    sliding_window: int | None
    max_batch: int
    kv_tokens: int
    scheme: str
    dtype: str
    policy: Any
    lm_head: str  # fp16 (the float type of the folder), w8 or w6
    tensor_parallel_size: int
    threads: int
    device: str  # cpu, cuda:1, or cuda:0-1 for several ranks
    memory_bytes: dict[str, int]  # of one rank, on its device
    gemm_note: str = ""  # on a GPU: which measured GEMM choices are in use
    gemm_choices: list[str] = field(default_factory=list)  # w6ax on a GPU: a product and its kernel
    step_note: str = ""  # on a GPU: which decode steps run as one kernel, or why none
    step_kernel_batch: int = 0  # sequences of the largest of these; 0: none


def describe(engine: Any, options: EngineOptions) -> EngineInfo:
    """What a loaded `_native.Engine` says about itself."""
    config = engine.config
    return EngineInfo(
        model_dir=options.model_dir,
        name=config.name,
        architecture=str(config.architecture),
        vocab_size=config.vocab_size,
        eos_ids=list(config.eos_ids),
        max_len=engine.max_len,
        sliding_window=config.sliding_window or None,
        max_batch=engine.max_batch,
        kv_tokens=engine.kv_tokens,
        scheme=engine.scheme,
        dtype=engine.dtype,
        policy=engine.policy,
        lm_head=engine.lm_head,
        tensor_parallel_size=options.tensor_parallel_size,
        threads=engine.threads,
        device=Device(options.device, options.gpu).label(options.tensor_parallel_size),
        memory_bytes=dict(engine.memory()),
        gemm_note=engine.gemm_note,
        gemm_choices=list(engine.gemm_choices),
        step_note=engine.step_note,
        step_kernel_batch=engine.step_kernel_batch,
    )
