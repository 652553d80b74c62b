"""What a request gives back, and how tokens become it: stop texts, whole characters, times."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flexq_ft.errors import FlexQFtError
from flexq_ft.orchestrate.engine.client import TokenEvent
from flexq_ft.orchestrate.sampling import SamplingParams
from flexq_ft.orchestrate.tokenizer import Detokenizer, Tokenizer


@dataclass(frozen=True)
class Metrics:
    """Times exclude tokenisation and include sampling.

    ttft_ms: prompt handed to the engine until the first token is on the host. tpot_ms: time per
    output token after the first. Those of one token only are None.
    """

    prompt_tokens: int
    output_tokens: int
    ttft_ms: float
    tpot_ms: float | None
    prefill_tok_s: float
    decode_tok_s: float | None
    peak_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in vars(self).items()
        }


@dataclass(frozen=True)
class CompletionOutput:
    """One continuation. text is None where the model has no tokenizer."""

    token_ids: list[int]
    text: str | None
    finish_reason: str
    logprobs: list[float] | None


@dataclass(frozen=True)
class ScoreOutput:
    """Of one text: log-probabilities of its tokens given those before; None where none is scored,
    as for the first."""

    token_ids: list[int]
    logprobs: list[float | None]
    sum_logprob: float
    argmax: list[int]  # the most likely id at each position that is scored


@dataclass(frozen=True)
class RequestOutput:
    """The result of one prompt; outputs has one element (the list is as in other engines)."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    seed: int
    metrics: Metrics

    def to_json(self) -> dict[str, Any]:
        """The result object of `run`."""
        output = self.outputs[0]
        result: dict[str, Any] = {
            "prompt_token_ids": self.prompt_token_ids,
            "token_ids": output.token_ids,
            "text": output.text,
            "finish_reason": output.finish_reason,
            "seed": self.seed,
            "metrics": self.metrics.to_json(),
        }
        if output.logprobs is not None:
            result["logprobs"] = [round(value, 6) for value in output.logprobs]
        return result


@dataclass(frozen=True)
class StreamPiece:
    """Text and tokens since the last piece; the last one has finish_reason and output."""

    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    output: RequestOutput | None = None


class StopTexts:
    """Passes text on, but holds back what may be the beginning of a stop text."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop text was met)."""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            safe, self._held = self._held[: min(found)], ""
            return safe, True
        keep = self._possible_start()
        cut = len(self._held) - keep
        safe, self._held = self._held[:cut], self._held[cut:]
        return safe, False

    def flush(self) -> str:
        safe, self._held = self._held, ""
        return safe

    def _possible_start(self) -> int:
        """Length of the longest end of the text that begins a stop text."""
        longest = max((len(stop) for stop in self._stops), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


@dataclass
class TextSequence:
    """One request on its way: collects events, gives pieces, ends as a RequestOutput."""

    prompt: str | None
    prompt_ids: list[int]
    params: SamplingParams
    tokenizer: Tokenizer | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None
    error: FlexQFtError | None = None

    def __post_init__(self) -> None:
        self._detokenizer = Detokenizer(self.tokenizer, self.prompt_ids) if self.tokenizer else None
        self._stops = StopTexts(tuple(self.params.stop))
        self._text: list[str] = []
        self._started = self._first = self._last = 0.0
        self._peak = 0

    @property
    def done(self) -> bool:
        return self.finish is not None or self.error is not None

    def push(self, event: TokenEvent) -> StreamPiece:
        """Take one event; `finish` may become `stop` although the engine would go on."""
        if event.error is not None:
            self.error = event.error
            return StreamPiece("", [])
        if not self.tokens:
            self._started, self._first = event.started, event.time
        self._last = event.time
        self._peak = max(self._peak, event.peak_memory_bytes)
        self.tokens.append(event.token)
        self.logprobs.append(event.logprob)
        self.finish = event.finish
        text = self._advance_text(event.token)
        self._text.append(text)
        return StreamPiece(text, [event.token], self.finish)

    def _advance_text(self, token: int) -> str:
        if self._detokenizer is None:
            return ""
        text = self._detokenizer.push(token)
        if self.finish is not None:
            text += self._detokenizer.flush()
        if len(self.tokens) < self.params.min_tokens:  # stop texts wait for min_tokens
            return self._stops.flush() + text
        text, stopped = self._stops.push(text)
        if stopped:
            self.finish = "stop"
        elif self.finish is not None:
            text += self._stops.flush()
        return text

    def output(self) -> RequestOutput:
        """The result, once done without error."""
        if self.finish is None:
            raise AssertionError("a sequence that still runs has no output")
        completion = CompletionOutput(
            token_ids=self.tokens,
            text="".join(self._text) if self._detokenizer else None,
            finish_reason=self.finish,
            logprobs=self.logprobs if self.params.logprobs else None,
        )
        assert self.params.seed is not None
        return RequestOutput(
            self.prompt,
            self.prompt_ids,
            [completion],
            self.params.seed,
            self._metrics(),
        )

    def _metrics(self) -> Metrics:
        later = len(self.tokens) - 1
        ttft = max(self._first - self._started, 1e-9)
        decode = max(self._last - self._first, 1e-9)
        return Metrics(
            prompt_tokens=len(self.prompt_ids),
            output_tokens=len(self.tokens),
            ttft_ms=1e3 * ttft,
            tpot_ms=1e3 * decode / later if later else None,
            prefill_tok_s=len(self.prompt_ids) / ttft,
            decode_tok_s=later / decode if later else None,
            peak_memory_bytes=self._peak,
        )
