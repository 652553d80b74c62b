"""A loaded model as a case needs it: the engine itself, because whole batches are timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from flexq_ft import _native
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.cli.console import console
from flexq_ft.orchestrate.devices import choose_device
from flexq_ft.orchestrate.engine import EngineClient, EngineOptions, Request
from flexq_ft.orchestrate.eval.perplexity import LONGEST_WINDOW
from flexq_ft.orchestrate.models import find_model
from flexq_ft.orchestrate.open_engine import open_engine
from flexq_ft.orchestrate.sampling import SamplingParams
from flexq_ft.orchestrate.sweep.measure import Session
from flexq_ft.orchestrate.sweep.plan import Case
from flexq_ft.orchestrate.timing import Timing, batch_timing
from flexq_ft.orchestrate.tokenizer import Tokenizer


class EngineSession:
    """Implements measure.Session over an engine, on one rank or several."""

    def __init__(self, engine: EngineClient, folder: Path, *, max_positions: int) -> None:
        self._engine = engine
        self._folder = folder
        self._peak = 0
        self._tokenizer = Tokenizer.load(folder)
        self.vocab_size = engine.info.vocab_size
        self.max_positions = max_positions
        self.threads = engine.info.threads
        self.device = engine.info.device
        self.weights_bytes = sum(file.stat().st_size for file in folder.glob("*.bin"))

    def encode(self, text: str) -> list[int]:
        if self._tokenizer is None:
            raise ConfigError(
                "this model has no tokenizer, so it has no perplexity on a text.",
                cause=f"{self._folder} holds no tokenizer.json.",
                hint="a sweep without quality.ppl, or convert the model with its tokenizer",
            )
        return self._tokenizer.encode(text)

    def request(self, prompts: list[list[int]], *, output_tokens: int) -> Timing:
        """Greedy, all prompts at once, exactly output_tokens each."""
        params = SamplingParams(max_tokens=output_tokens, ignore_eos=True, seed=0).engine_fields()
        requests = [Request(index, prompt, params) for index, prompt in enumerate(prompts)]
        with closing(self._engine.generate(requests)) as steps:
            events = [event for step in steps for event in step]
        self._peak = max(self._peak, *(event.peak_memory_bytes for event in events))
        return batch_timing(events, prompt_tokens=sum(len(prompt) for prompt in prompts))

    def score(self, ids: Sequence[int], /) -> tuple[list[float], list[int]]:
        scored = self._engine.score(ids)
        return scored.logprobs, scored.argmax

    def peak_memory_bytes(self) -> int:
        """As the last events of the requests told it: quality runs come later."""
        return self._peak


@contextmanager
def open_session(case: Case, *, cache_dir: Path | None) -> Iterator[Session]:
    """The model of a case, converted into the cache first where need be."""
    found = find_model(
        Path(case.model),
        tensor_parallel_size=case.tp,
        scheme=case.scheme,
        policy=case.policy,
        dtype=case.dtype,
        cache_dir=cache_dir,
        notify=console.info,
        progress=None,
    )
    positions = _native.open_model_folder(str(found.folder)).config.max_positions
    scheme, dtype = found.numbers()
    device = choose_device(
        case.device, scheme=scheme, dtype=dtype, ranks=case.tp, notify=console.info
    )
    options = EngineOptions(
        model_dir=str(found.folder),
        tensor_parallel_size=case.tp,
        scheme=found.scheme,
        policy=found.policy,
        dtype=found.dtype,
        max_len=_context(case, positions),
        max_batch=case.batch,
        device=device.kind,
        gpu=device.gpu,
    )
    engine = open_engine(options)
    try:
        yield EngineSession(engine, found.folder, max_positions=positions)
    finally:
        engine.close()


def _context(case: Case, positions: int) -> int:
    """Long enough for the requests and for a window, no longer: the cache is sized by it."""
    longest = case.prompt_tokens + case.output_tokens
    if case.quality.ppl is not None:
        longest = max(longest, case.quality.ppl.window or LONGEST_WINDOW)
    return min(longest, positions)
