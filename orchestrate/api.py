"""The Python API: LLM, SamplingParams, RequestOutput.

with LLM("out/llama-7b", scheme="flexq", tensor_parallel_size=2) as llm:
    for result in llm.generate(["Hello", "Bonjour"], SamplingParams(max_tokens=64, seed=7)):
        print(result.outputs[0].text, result.metrics.decode_tok_s)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flexq_ft.errors import ConfigError, FlexQFtError
from flexq_ft.orchestrate import world
from flexq_ft.orchestrate.devices import check_device, choose_device
from flexq_ft.orchestrate.engine import (
    EngineClient,
    EngineInfo,
    EngineOptions,
    LoadProgress,
    Request,
)
from flexq_ft.orchestrate.models import find_model
from flexq_ft.orchestrate.open_engine import open_engine
from flexq_ft.orchestrate.outputs import (
    CompletionOutput,
    Metrics,
    RequestOutput,
    ScoreOutput,
    StreamPiece,
    TextSequence,
)
from flexq_ft.orchestrate.sampling import SamplingParams, params_for
from flexq_ft.orchestrate.suggest import refuse_unknown
from flexq_ft.orchestrate.tokenizer import Tokenizer

if TYPE_CHECKING:
    from flexq_ft.converter.progress import ProgressSink

__all__ = [
    "LLM",
    "CompletionOutput",
    "Metrics",
    "RequestOutput",
    "SamplingParams",
    "ScoreOutput",
    "StreamPiece",
]

Prompt = str | Sequence[int]


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
        _at_least_one(
            tensor_parallel_size=tensor_parallel_size,
            max_batch=max_batch,
            threads=threads,
            max_len=max_len,
        )
        self._notify = notify or _say_nothing
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
            notify=self._notify,
            progress=progress,
        )
        resolved_scheme, resolved_dtype = found.numbers()
        chosen = choose_device(
            device,
            scheme=resolved_scheme,
            dtype=resolved_dtype,
            ranks=tensor_parallel_size if ranks is None else ranks.local_size,
            notify=self._notify,
        )
        options = EngineOptions(
            model_dir=str(found.folder),
            tensor_parallel_size=tensor_parallel_size,
            scheme=found.scheme,
            policy=found.policy,
            dtype=found.dtype,
            lm_head=found.lm_head,
            max_len=max_len or 0,
            max_batch=max_batch,
            threads=threads or 0,
            device=chosen.kind,
            gpu=chosen.gpu,
            step_kernel=step_kernel,
        )
        self._tokenizer = Tokenizer.load(found.folder)
        self._engine: EngineClient | None = open_engine(options, ranks, progress=load_progress)
        self._say_if_cache_is_small()

    @classmethod
    def from_engine(cls, engine: EngineClient, tokenizer: Tokenizer | None) -> LLM:
        """Around an engine that is already open."""
        llm = cls.__new__(cls)
        llm._engine = engine
        llm._tokenizer = tokenizer
        llm._notify = _say_nothing
        return llm

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
        batch: list[Prompt] = [prompts] if isinstance(prompts, str) else _as_list(prompts)
        sequences = self._sequences(batch, params)
        outputs = []
        for result in self._in_order(sequences):
            if isinstance(result, FlexQFtError):
                raise result
            outputs.append(result)
        return outputs

    def generate_each(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]
    ) -> Generator[RequestOutput | FlexQFtError, None, None]:
        """As generate, but each result as soon as it and those before it are there; a prompt that
        cannot be run gives its error in its place. Closing it stops the others."""
        every = params_for(len(prompts), params)
        sequences: list[TextSequence | FlexQFtError] = []
        for prompt, one in zip(prompts, every, strict=True):
            try:
                sequences.append(self._sequence(prompt, one))
            except ConfigError as error:
                sequences.append(error)
        return self._in_order(sequences)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None
    ) -> Generator[StreamPiece, None, None]:
        """Pieces as tokens come, in whole characters; the last has `output`. Closing it stops."""
        sequence = self._sequence(prompt, params or SamplingParams())
        return self._pieces(sequence)

    def score(
        self, texts: Sequence[Prompt], *, first: Sequence[int] | None = None
    ) -> list[ScoreOutput]:
        """Log-probability of every token of each text (or list of ids), teacher-forced.

        first: of each text, the first token that is scored (from 1 on); those before are given.
        """
        outputs = []
        all_ids = [self._ids(text) for text in texts]
        begins = list(first or [1] * len(texts))
        scores = self._open().score(all_ids, begins)
        for ids, begin, scored in zip(all_ids, begins, scores, strict=True):
            logprobs: list[float | None] = [*[None] * begin, *scored.logprobs]
            outputs.append(ScoreOutput(ids, logprobs, float(sum(scored.logprobs)), scored.argmax))
        return outputs

    def forward_logits(
        self, ids: Sequence[int] | Sequence[Sequence[int]]
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Logits [tokens, vocab] in fp32 of one list of ids, or a list of them for several."""
        if len(ids) > 0 and isinstance(ids[0], int | np.integer):
            return self._open().forward(self._ids(ids))  # type: ignore[arg-type]
        return [self._open().forward(self._ids(one)) for one in ids]  # type: ignore[arg-type]

    def linear_inputs(self, ids: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """What every linear of the model is given, [tokens, k] by name, before it is quantised; on
        one rank only."""
        return self._open().linear_inputs(self._ids(ids))

    def _open(self) -> EngineClient:
        if self._engine is None:
            raise ConfigError("this LLM is closed.", hint="make a new one")
        return self._engine

    def _say_if_cache_is_small(self) -> None:
        info = self.info
        if info.kv_tokens < info.max_batch * info.max_len:
            self._notify(
                f"the KV cache has room for {info.kv_tokens:,} tokens, fewer than"
                f" {info.max_batch} sequences of {info.max_len:,}: long ones wait for each other"
            )

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise ConfigError(
                    "this model has no tokenizer, so it takes no text.",
                    cause=f"{self.info.model_dir} holds no tokenizer.json.",
                    hint="token ids: --ids 1,450,7   or, in Python, a list of ids",
                )
            ids = self._tokenizer.encode(prompt)
        else:
            ids = [int(token) for token in prompt]
        self._check_ids(ids)
        return ids

    def _check_ids(self, ids: list[int]) -> None:
        info = self.info
        if not ids:
            raise ConfigError("the prompt is empty.", hint="give at least one token")
        wrong = [token for token in ids if not 0 <= token < info.vocab_size]
        if wrong:
            raise ConfigError(
                f"token id {wrong[0]} is not in the vocabulary.",
                cause=f"ids go from 0 to {info.vocab_size - 1:,}.",
                hint="ids of this model's own tokenizer",
            )

    def _sequences(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[TextSequence | FlexQFtError]:
        if prompts and isinstance(prompts[0], int | np.integer):
            raise ConfigError(
                "generate() takes a list of prompts.",
                cause="it was given one list of ids.",
                hint="llm.generate([ids], params)",
            )
        every = params_for(len(prompts), params or SamplingParams())
        return [self._sequence(p, one) for p, one in zip(prompts, every, strict=True)]

    def _sequence(self, prompt: Prompt, params: SamplingParams) -> TextSequence:
        ids = self._ids(prompt)
        if len(ids) >= self.info.max_len:
            raise _too_long(len(ids), self.info)
        if params.stop and self._tokenizer is None:
            raise ConfigError(
                "stop texts need a tokenizer, and this model has none.",
                hint="stop_words with token ids",
            )
        room = self.info.max_len - len(ids)
        if params.max_tokens > room:
            self._notify(
                f"the context of {self.info.max_len:,} tokens leaves room for {room:,} after a"
                f" prompt of {len(ids):,}, fewer than max_tokens {params.max_tokens:,}"
            )
        text = prompt if isinstance(prompt, str) else None
        return TextSequence(text, ids, params.with_seed(), self._tokenizer)

    def _pieces(self, sequence: TextSequence) -> Generator[StreamPiece, None, None]:
        engine = self._open()
        request = Request(0, sequence.prompt_ids, sequence.params.engine_fields())
        with closing(engine.generate([request])) as steps:
            for event in (event for step in steps for event in step):
                piece = sequence.push(event)
                if sequence.done:
                    break
                yield piece
        if sequence.error is not None:
            raise sequence.error
        output = sequence.output()
        yield StreamPiece(piece.text, piece.token_ids, sequence.finish, output)

    def _in_order(
        self, sequences: Sequence[TextSequence | FlexQFtError]
    ) -> Generator[RequestOutput | FlexQFtError, None, None]:
        engine = self._open()
        running = {i: s for i, s in enumerate(sequences) if isinstance(s, TextSequence)}
        requests = [Request(i, s.prompt_ids, s.params.engine_fields()) for i, s in running.items()]
        ready: dict[int, RequestOutput | FlexQFtError] = {
            i: s for i, s in enumerate(sequences) if isinstance(s, FlexQFtError)
        }
        given = 0
        with closing(engine.generate(requests)) as steps:
            for step in steps:
                for event in step:
                    sequence = running.get(event.id)
                    if sequence is None:
                        continue  # cancelled; the engine had gone on a little
                    sequence.push(event)
                    if sequence.done:
                        del running[event.id]
                        ready[event.id] = _result(sequence)
                        if event.finish is None and event.error is None:
                            engine.cancel(event.id)
                while given in ready:
                    yield ready.pop(given)
                    given += 1
        while given in ready:
            yield ready.pop(given)
            given += 1


def _say_nothing(line: str) -> None:
    """For callers of the Python API that gave no notify."""


def _result(sequence: TextSequence) -> RequestOutput | FlexQFtError:
    if sequence.error is not None:
        return sequence.error
    return sequence.output()


def _as_list(prompts: Any) -> list[Prompt]:
    try:
        return list(prompts)
    except TypeError as error:
        raise ConfigError(
            f"generate() takes texts or lists of ids, not {type(prompts).__name__}.",
            hint="llm.generate([prompt], params)",
        ) from error


def _too_long(tokens: int, info: EngineInfo) -> ConfigError:
    windowed = info.sliding_window == info.max_len
    return ConfigError(
        f"the prompt has {tokens:,} tokens; with at least one new token it does not fit "
        f"in {info.max_len:,}.",
        cause=f"contexts beyond the model's sliding_window of {info.max_len:,} are not supported."
        if windowed
        else "the context of the model, or --max-len.",
        hint="a shorter prompt"
        if windowed
        else "a shorter prompt, or a larger --max-len if the model allows it",
    )


def _keywords(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _at_least_one(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.", hint=f"change {name}")
