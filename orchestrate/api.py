"""LLM: the Python API.

with LLM("out/llama-7b", scheme="flexq", tensor_parallel_size=2) as llm:
    for result in llm.generate(["Hello", "Bonjour"], SamplingParams(max_tokens=64, seed=7)):
        print(result.outputs[0].text, result.metrics.decode_tok_s)
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flexq_ft.errors import ConfigError, FlexQFtError
from flexq_ft.orchestrate import generation, world
from flexq_ft.orchestrate.devices import check_device, choose_device
from flexq_ft.orchestrate.engine.client import EngineClient
from flexq_ft.orchestrate.engine.info import EngineInfo
from flexq_ft.orchestrate.engine.open import open_engine
from flexq_ft.orchestrate.engine.options import EngineOptions
from flexq_ft.orchestrate.engine.single_rank import LoadProgress
from flexq_ft.orchestrate.models import find_model
from flexq_ft.orchestrate.outputs import RequestOutput, ScoreOutput, StreamPiece, TextSequence
from flexq_ft.orchestrate.prompts import Prompt, PromptReader, listed
from flexq_ft.orchestrate.sampling import SamplingParams, params_for
from flexq_ft.orchestrate.suggest import refuse_unknown
from flexq_ft.orchestrate.tokenizer import Tokenizer

if TYPE_CHECKING:
    from flexq_ft.converter.progress import ProgressSink


class LLM:
    """One loaded model.

    model: a flexq-ft folder (OUT or OUT/N-gpu), one written by FasterTransformer, a Hugging Face
    directory or a .gguf file; the last two are converted into a cache first (cache_dir, default
    $XDG_CACHE_HOME/flexq-ft). scheme: fp16 bf16 fp32 w8a16 w8a8 w6ax, or a policy's name (flexq
    w6a6 w6a8 w6a16) for w6ax with it. policy: a name, a YAML file or a mapping. dtype: compute
    type, by default the folder's. lm_head: fp16, w8 or w6, how a model that is converted into the
    cache stores its head. device: auto (a GPU where one can run the model, else the CPU),
    cpu, cuda or cuda:N; with several ranks each takes a GPU. step_kernel: decode steps of a GPU as
    one kernel: auto (where that was measured to be faster), on or off. threads: per rank, by
    default cores / ranks. max_len: longest prompt + output. max_batch: sequences decoded together.
    notify: called with a line of text about what is being done (conversion into the cache, a device
    that auto did not choose); progress: told of a conversion's progress; load_progress: called with
    the bytes read and all bytes of the weights, where one rank loads.

    Under mpirun every rank makes the same LLM; rank 0 goes on, the others serve it and then exit.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        scheme: str | None = None,
        policy: str | Path | dict[str, Any] | None = None,
        dtype: str | None = None,
        lm_head: str | None = None,
        tensor_parallel_size: int = 1,
        device: str = "auto",
        step_kernel: str = "auto",
        threads: int | None = None,
        max_len: int | None = None,
        max_batch: int = 8,
        cache_dir: str | Path | None = None,
        notify: Callable[[str], None] | None = None,
        progress: ProgressSink | None = None,
        load_progress: LoadProgress | None = None,
        **unknown: Any,
    ) -> None:
        refuse_unknown("keyword of LLM()", unknown, _keywords(LLM.__init__))
        tensor_parallel_size = _size("tensor_parallel_size", tensor_parallel_size)
        max_batch = _size("max_batch", max_batch)
        threads = 0 if threads is None else _size("threads", threads)
        max_len = 0 if max_len is None else _size("max_len", max_len)
        notify = notify or _say_nothing
        check_device(device)
        ranks = world.join(tensor_parallel_size)
        found = find_model(
            Path(model),
            tensor_parallel_size=tensor_parallel_size,
            scheme=scheme,
            policy=policy,
            dtype=dtype,
            lm_head=lm_head,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            notify=notify,
            progress=progress,
        )
        resolved_scheme, resolved_dtype = found.numbers()
        chosen = choose_device(
            device,
            scheme=resolved_scheme,
            dtype=resolved_dtype,
            ranks=tensor_parallel_size if ranks is None else ranks.local_size,
            notify=notify,
        )
        options = EngineOptions(
            model_dir=str(found.folder),
            tensor_parallel_size=tensor_parallel_size,
            scheme=found.scheme,
            policy=found.policy,
            dtype=found.dtype,
            lm_head=found.lm_head,
            max_len=max_len,
            max_batch=max_batch,
            threads=threads,
            device=chosen.kind,
            gpu=chosen.gpu,
            step_kernel=step_kernel,
        )
        tokenizer = Tokenizer.load(found.folder)
        self._hold(open_engine(options, ranks, progress=load_progress), tokenizer, notify)
        _say_if_cache_is_small(self.info, notify)

    @classmethod
    def from_engine(cls, engine: EngineClient, tokenizer: Tokenizer | None) -> LLM:
        """Around an engine that is already open."""
        llm = cls.__new__(cls)
        llm._hold(engine, tokenizer, _say_nothing)
        return llm

    def _hold(
        self, engine: EngineClient, tokenizer: Tokenizer | None, notify: Callable[[str], None]
    ) -> None:
        self._engine: EngineClient | None = engine
        self._tokenizer = tokenizer
        self._prompts = PromptReader(engine.info, tokenizer, notify)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the ranks and frees the model; a second time does nothing."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    @property
    def info(self) -> EngineInfo:
        """The model and the choices as resolved."""
        return self._open().info

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None where the model folder has no tokenizer: ids in, ids out."""
        return self._tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """The continuation of each prompt, in order. Prompts are texts or lists of ids.

        Raises ConfigError for an empty prompt, one that does not fit, or ids not in the vocabulary,
        before anything runs.
        """
        engine = self._open()
        sequences = self._prompts.sequences(prompts, params or SamplingParams())
        outputs = []
        for result in generation.in_order(engine, sequences):
            if isinstance(result, FlexQFtError):
                raise result
            outputs.append(result)
        return outputs

    def generate_each(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]
    ) -> Generator[RequestOutput | FlexQFtError, None, None]:
        """As generate, but each result as soon as it and those before it are there; a prompt that
        cannot be run gives its error in its place. Closing it stops the others."""
        engine = self._open()
        sequences: list[TextSequence | FlexQFtError] = []
        for prompt, one in zip(prompts, params_for(len(prompts), params), strict=True):
            try:
                sequences.append(self._prompts.sequence(prompt, one))
            except ConfigError as error:
                sequences.append(error)
        return generation.in_order(engine, sequences)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None
    ) -> Generator[StreamPiece, None, None]:
        """Pieces as tokens come, in whole characters; the last has `output`. Closing it stops."""
        engine = self._open()
        [one] = params_for(1, params or SamplingParams())
        return generation.pieces(engine, self._prompts.sequence(prompt, one))

    def score(
        self, texts: Prompt | Sequence[Prompt], *, first: Sequence[int] | None = None
    ) -> list[ScoreOutput]:
        """Log-probability of every token of each text (or list of ids), teacher-forced.

        first: of each text, the first token that is scored (from 1 on); those before are given.
        """
        engine = self._open()
        outputs = []
        all_ids = [self._prompts.ids(text) for text in listed(texts)]
        begins = [1] * len(all_ids) if first is None else _first_tokens(first)
        for ids, begin, scored in zip(all_ids, begins, engine.score(all_ids, begins), strict=True):
            logprobs: list[float | None] = [*[None] * begin, *scored.logprobs]
            outputs.append(ScoreOutput(ids, logprobs, float(sum(scored.logprobs)), scored.argmax))
        return outputs

    def forward_logits(
        self, ids: Prompt | Sequence[Prompt]
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Logits [tokens, vocab] in fp32 of one text or list of ids; of several, a list of them."""
        engine, read = self._open(), self._prompts.ids
        if isinstance(ids, str):
            return engine.forward(read(ids))
        batch = listed(ids)
        if batch and isinstance(batch[0], int | np.integer):
            return engine.forward(read(batch))  # type: ignore[arg-type]
        return [engine.forward(read(one)) for one in batch]

    def linear_inputs(self, ids: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """What every linear of the model is given, [tokens, k] by name, before it is quantised; on
        one rank only."""
        return self._open().linear_inputs(self._prompts.ids(ids))

    def _open(self) -> EngineClient:
        if self._engine is None:
            raise ConfigError("this LLM is closed.", hint="make a new one")
        return self._engine


def _say_nothing(line: str) -> None:
    """For callers of the Python API that gave no notify."""


def _say_if_cache_is_small(info: EngineInfo, notify: Callable[[str], None]) -> None:
    if info.kv_tokens < info.max_batch * info.max_len:
        notify(
            f"the KV cache has room for {info.kv_tokens:,} tokens, fewer than"
            f" {info.max_batch} sequences of {info.max_len:,}: long ones wait for each other"
        )


def _keywords(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _first_tokens(first: Any) -> list[int]:
    try:
        return [operator.index(token) for token in first]
    except TypeError as error:
        raise ConfigError(
            f"first is {first!r}; it must be a list of whole numbers, one for each text.",
            hint="llm.score([text], first=[1])",
        ) from error


def _size(name: str, value: Any) -> int:
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (is_whole and 1 <= value < 1 << 31):
        raise ConfigError(
            f"{name} is {value!r}; it must be a whole number from 1 to {(1 << 31) - 1:,}.",
            hint=f"change {name}",
        )
    return int(value)
