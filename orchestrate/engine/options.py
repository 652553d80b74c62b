"""EngineOptions: what an engine is opened with, on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EngineOptions:
    """What `_native.Engine` is made with; 0 and None mean its defaults."""

    model_dir: str
    tensor_parallel_size: int = 1
    scheme: str | None = None
    policy: Any = None
    dtype: str | None = None
    lm_head: str | None = None
    max_len: int = 0
    max_batch: int = 8
    threads: int = 0
    device: str = "cpu"  # or cuda
    gpu: int = 0  # of the host's first rank
    prefill_tokens: int = 0
    graphs: bool = True
    step_kernel: str = "auto"  # or on, off: decode steps of a GPU as one kernel
    synthetic_weights: bool = False  # model_dir may then be a shape's INI
