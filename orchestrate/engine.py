"""One engine to the layers above, wherever its ranks are: requests in, token events out.

`LocalEngine` drives `_native.Engine` in this process; `RemoteEngine` (launcher.py) has the same
face over a socket. Which sequences run together is decided here: as many as fit, in order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flexq_ft.errors import ConfigError, FlexQFtError
from flexq_ft.orchestrate.devices import Device

# Called as weights are read, with the bytes that are done and all that there are.
LoadProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """One prompt; params are the engine's sampling fields. id is the caller's."""

    id: int
    prompt: list[int]
    params: dict[str, Any]


@dataclass(frozen=True)
class TokenEvent:
    """One token of one request, or the error that ended it. Times in seconds, monotonic clock."""

    id: int
    token: int
    logprob: float
    finish: str | None
    started: float  # when the prompt was handed to the engine
    time: float  # when the token was on the host
    # Of all ranks together, so far; with the first and the last token of a request.
    peak_memory_bytes: int = 0
    error: FlexQFtError | None = None


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


@dataclass(frozen=True)
class Score:
    """Of a sequence's tokens from one on: log-probability of each, and the most likely id."""

    logprobs: list[float]
    argmax: list[int]


class EngineClient(Protocol):
    """What the API needs of an engine."""

    @property
    def info(self) -> EngineInfo: ...

    def generate(self, requests: Sequence[Request]) -> Generator[list[TokenEvent], None, None]:
        """Events of all requests, step by step. Closing the generator stops them all."""

    def cancel(self, request_id: int) -> None:
        """Stop one request of the running generate; later events of it may be ignored."""

    def score(self, texts: Sequence[Sequence[int]], first: Sequence[int]) -> list[Score]:
        """Of each text's ids from its `first` on; there is nothing before token 0. Texts run side
        by side, as many as the engine's batch and prefill_tokens allow."""

    def forward(self, ids: Sequence[int]) -> NDArray[np.float32]: ...

    def linear_inputs(self, ids: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """[tokens, k] of every linear, by name, in the model's order; of one rank only."""

    def take_step_times(self) -> list[float]:
        """Milliseconds of each step since the last call, on rank 0's device (or by its clock)."""

    def step_profile(self, batch: int, context: int) -> list[dict[str, Any]]:
        """One decode step, node by node: name, layer, ms, bytes; of rank 0."""

    def close(self) -> None: ...


def refuse_if_busy(is_busy: bool) -> None:
    """An engine serves one generate at a time: events of two would be mixed up."""
    if is_busy:
        raise ConfigError(
            "a stream of this LLM is still open.",
            cause="one LLM runs one generate or stream at a time.",
            hint="read the stream to its end, close it, or give all prompts to one generate",
        )


def refuse_linear_inputs(ranks: int) -> None:
    """A rank has a part of some inputs only."""
    if ranks > 1:
        raise ConfigError(
            f"the inputs of linears are shown on one rank, and there are {ranks}.", hint="--tp 1"
        )


@dataclass
class _Running:
    request: Request
    started: float
    is_first: bool = True


class LocalEngine:
    """Drives one `_native.Engine` (or what stands for the ranks of a group: worker.Leader)."""

    def __init__(self, native: Any, info: EngineInfo) -> None:
        self._native = native
        self._info = info
        self._waiting: deque[Request] = deque()
        self._running: dict[int, _Running] = {}  # by slot
        self._is_busy = False

    @property
    def info(self) -> EngineInfo:
        return self._info

    def generate(self, requests: Sequence[Request]) -> Generator[list[TokenEvent], None, None]:
        refuse_if_busy(self._is_busy)
        self._is_busy = True
        self._waiting.extend(requests)
        try:
            while self._waiting or self._running:
                refused = self._admit()
                if refused:
                    yield refused
                if self._running:
                    yield self._step()
        finally:
            self._is_busy = False
            self._waiting.clear()
            for slot in list(self._running):
                self._release(slot)

    def _admit(self) -> list[TokenEvent]:
        """Hand over what fits; when nothing runs the next one must fit or fail."""
        refused = []
        while self._waiting:
            request = self._waiting[0]
            room = self._native.can_admit(len(request.prompt), request.params["max_tokens"])
            if self._running and not room:
                break
            self._waiting.popleft()
            now = time.monotonic()
            try:
                slot = self._native.admit(request.prompt, **request.params)
            except ConfigError as error:
                refused.append(TokenEvent(request.id, -1, 0.0, None, now, now, error=error))
            else:
                self._running[slot] = _Running(request, now)
        return refused

    def _step(self) -> list[TokenEvent]:
        outputs = self._native.step()
        now = time.monotonic()
        peak: int | None = None
        events = []
        for slot, token, logprob, finish in outputs:
            running = self._running[slot]
            first, running.is_first = running.is_first, False
            if peak is None and (first or finish is not None):
                peak = int(self._native.peak_memory_bytes())
            events.append(
                TokenEvent(
                    running.request.id,
                    token,
                    logprob,
                    finish,
                    running.started,
                    now,
                    peak_memory_bytes=peak or 0,
                )
            )
            if finish is not None:
                self._release(slot)
        return events

    def cancel(self, request_id: int) -> None:
        for slot, running in list(self._running.items()):
            if running.request.id == request_id:
                self._release(slot)
        self._waiting = deque(r for r in self._waiting if r.id != request_id)

    def _release(self, slot: int) -> None:
        del self._running[slot]
        self._native.release(slot)

    def score(self, texts: Sequence[Sequence[int]], first: Sequence[int]) -> list[Score]:
        scores = self._native.score_batch([list(ids) for ids in texts], list(first))
        return [Score(np.asarray(p).tolist(), np.asarray(best).tolist()) for p, best in scores]

    def forward(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return np.asarray(self._native.forward(list(ids)), dtype=np.float32)

    def linear_inputs(self, ids: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        refuse_linear_inputs(self._info.tensor_parallel_size)
        return {trace["name"]: trace["x"] for trace in self._native.trace(list(ids))}

    def take_step_times(self) -> list[float]:
        return [float(ms) for ms in self._native.take_step_times()]

    def step_profile(self, batch: int, context: int) -> list[dict[str, Any]]:
        refuse_if_busy(self._is_busy)
        return [dict(node) for node in self._native.step_profile(batch, context)]

    def close(self) -> None:
        self._native = None


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


class SingleRank:
    """`_native.Engine` on one rank, with its peak memory beside.

    On the CPU that is the process's largest resident set; on a GPU all is allocated at the start,
    and the peak is the sum of what the engine holds.
    """

    def __init__(
        self, options: EngineOptions, ranks: Any = None, progress: LoadProgress | None = None
    ) -> None:
        from flexq_ft import _native

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

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def peak_memory_bytes(self) -> int:
        if self._on_gpu:
            return sum(self.engine.memory().values())
        return int(self._peak())


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
