"""Perplexity of a text by the two protocols of docs/numerics.md, `paper` and `raw`.

A perplexity without its protocol means nothing (word or token, window, joins, start token), so the
result carries everything that decides the number, and prints it beside it.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from flexq_ft.errors import ConfigError, WeightError
from flexq_ft.orchestrate.bench.samples import interval95

TextProtocol = Literal["paper", "raw"]
PROTOCOLS: tuple[TextProtocol, ...] = get_args(TextProtocol)
LONGEST_WINDOW = 2048

_DESCRIPTION = {
    "paper": "lines joined by blank lines, tokenised once",
    "raw": "the file as it is, tokenised once",
}


class Scorer(Protocol):
    """What can be scored: log-probability of each token after the first, and the likeliest id."""

    def score(self, ids: Sequence[int], /) -> tuple[npt.ArrayLike, npt.ArrayLike]: ...


@dataclass(frozen=True, kw_only=True)
class TextWindows:
    """A text as the protocol cuts it: `windows` [W, window] token ids, equal in length."""

    protocol: TextProtocol
    window: int
    windows: npt.NDArray[np.int64]
    text_tokens: int
    text_sha256: str
    short_text: bool

    @property
    def used_tokens(self) -> int:
        return int(self.windows.size)

    def describe(self) -> str:
        """What must stand wherever a number over these windows stands."""
        short = (
            "; the text is shorter than one window and was used whole" if self.short_text else ""
        )
        return (
            f"protocol {self.protocol} ({_DESCRIPTION[self.protocol]}), window {self.window}, "
            f"stride {self.window}, {self.used_tokens} tokens in {len(self.windows)} windows, "
            f"text sha256 {self.text_sha256[:12]}{short}"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "window": self.window,
            "stride": self.window,
            "windows": len(self.windows),
            "tokens": self.used_tokens,
            "text_tokens": self.text_tokens,
            "text_sha256": self.text_sha256,
            "short_text": self.short_text,
        }


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """A perplexity with all that decides it. `argmax` [W, window - 1] serves agreement."""

    perplexity: float
    standard_error: float | None
    confidence95: tuple[float, float] | None
    loss: float
    window_losses: list[float]
    text: TextWindows
    argmax: npt.NDArray[np.int64] = field(repr=False, compare=False)

    def describe(self) -> str:
        """One line that must stand wherever the number stands."""
        return f"token perplexity, {self.text.describe()}"

    def to_json(self) -> dict[str, Any]:
        return {
            "perplexity": self.perplexity,
            "standard_error": self.standard_error,
            "confidence95": self.confidence95 and list(self.confidence95),
            "loss": self.loss,
            "window_losses": self.window_losses,
            **self.text.to_json(),
            "description": self.describe(),
        }


def protocol_text(data: bytes, *, protocol: TextProtocol) -> str:
    """The string that the protocol tokenises.

    `paper` follows the rows of the `datasets` script for WikiText: a row is a line with its line
    end, a line of white space only is the empty string; rows are joined by two newlines.
    Raises ConfigError if the bytes are not UTF-8.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the text is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}.",
            hint="iconv -t UTF-8 FILE > FILE.utf8",
        ) from error
    if protocol == "raw":
        return text
    # Only \n, \r and \r\n end a line here, as in a file read line by line; str.splitlines() would
    # also split at form feeds and Unicode separators.
    rows = io.StringIO(text, newline=None)
    return "\n\n".join(row if row.strip() else "" for row in rows)


def cut_windows(
    data: bytes,
    encode: Callable[[str], Sequence[int]],
    *,
    protocol: TextProtocol,
    max_positions: int,
    window: int | None = None,
    max_windows: int | None = None,
) -> TextWindows:
    """Tokenise a text once and cut it into windows that do not overlap.

    The window is min(2048, max_positions) unless given; the last partial window is dropped. A text
    shorter than one window is used whole, and the result says so.
    Raises ConfigError if the window exceeds max_positions or the text has fewer than two tokens.
    """
    if window is None:
        window = min(LONGEST_WINDOW, max_positions)
    if not 2 <= window <= max_positions:
        raise ConfigError(
            f"a perplexity window of {window} tokens does not fit the model.",
            cause=f"the model has {max_positions} positions, and a window needs at least 2.",
            hint=f"a window of {min(LONGEST_WINDOW, max_positions)} tokens",
        )
    ids = np.asarray(encode(protocol_text(data, protocol=protocol)), dtype=np.int64)
    if ids.size < 2:
        raise ConfigError(
            f"the text has {ids.size} tokens; perplexity needs at least 2.", hint="a longer text"
        )
    short = ids.size < window
    if short:
        window = int(ids.size)
    count = ids.size // window
    if max_windows is not None:
        count = min(count, max_windows)
    return TextWindows(
        protocol=protocol,
        window=window,
        windows=ids[: count * window].reshape(count, window),
        text_tokens=int(ids.size),
        text_sha256=hashlib.sha256(data).hexdigest(),
        short_text=short,
    )


def evaluate(
    scorer: Scorer,
    text: TextWindows,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """exp of the mean window loss, teacher-forced; each window starts with an empty context.

    The standard error is that of the mean over windows, carried through exp, and the confidence
    interval that of Student's t; None for one window.
    progress(done, total) is called after each window. WeightError if a loss is not finite.
    """
    count = len(text.windows)
    losses: list[float] = []
    argmax = np.empty((count, text.window - 1), dtype=np.int64)
    for index, window in enumerate(text.windows):
        logprobs, best = scorer.score(window.tolist())
        loss = -float(np.mean(np.asarray(logprobs, dtype=np.float64)))
        if not math.isfinite(loss):
            raise WeightError(
                f"the model gives a loss of {loss} in window {index} of {count}.",
                cause="its logits are not finite there, so it has no perplexity on this text.",
                hint="dtype fp32 or bf16, if the model was trained in bf16",
            )
        losses.append(loss)
        argmax[index] = np.asarray(best)
        if progress is not None:
            progress(index + 1, count)
    loss = math.fsum(losses) / count
    perplexity = math.exp(loss)
    error = confidence = None
    if (half := interval95(losses)) is not None:
        error = perplexity * float(np.std(losses, ddof=1)) / math.sqrt(count)
        confidence = (math.exp(loss - half), math.exp(loss + half))
    return Perplexity(
        perplexity=perplexity,
        standard_error=error,
        confidence95=confidence,
        loss=loss,
        window_losses=losses,
        text=text,
        argmax=argmax,
    )


def perplexity_ratio(
    ours: Sequence[float], theirs: Sequence[float]
) -> tuple[float, list[float] | None]:
    """Of two perplexities of the same windows, from their losses window by window, and its 95 %
    interval: that of the paired differences. None for one window."""
    differences = [own - other for own, other in zip(ours, theirs, strict=True)]
    mean, half = math.fsum(differences) / len(differences), interval95(differences)
    interval = None if half is None else [math.exp(mean - half), math.exp(mean + half)]
    return math.exp(mean), interval
