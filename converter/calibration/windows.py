"""The token windows of a calibration: evenly spaced over a text, without any seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from flexq_ft.converter.added_tokens import add_declared_tokens
from flexq_ft.converter.model_config import ModelConfig
from flexq_ft.converter.source.base import Source
from flexq_ft.errors import ConfigError, WeightError

__all__ = ["CalibrationWindows", "check_length", "cut_windows"]


@dataclass(frozen=True, kw_only=True)
class CalibrationWindows:
    """windows: token ids [sequences, length]; sequences_asked: more than the text had, maybe."""

    windows: NDArray[np.int64]
    sequences_asked: int
    length_asked: int
    text_tokens: int
    text_sha256: str

    @property
    def tokens(self) -> int:
        return int(self.windows.size)

    def describe(self) -> str:
        sequences, length = self.windows.shape
        text = f"{sequences} x {length} tokens of {self.text_tokens:,}"
        if (sequences, length) != (self.sequences_asked, self.length_asked):
            text += f" (asked for {self.sequences_asked} x {self.length_asked}: the text is short)"
        return f"{text}, text sha256 {self.text_sha256[:12]}"


def cut_windows(text: bytes, source: Source, *, sequences: int, length: int) -> CalibrationWindows:
    """`sequences` windows of `length` tokens that do not overlap, at even distances.

    The text is tokenised once, with the model's own tokenizer and what that adds by default. A text
    that is too short gives fewer windows, or one that is shorter. Raises ConfigError for windows
    longer than the model's positions, a text that is not UTF-8 or empty, and a source without
    tokenizer.
    """
    check_length(source.config, length)
    ids = np.asarray(_tokenizer(source).encode(_decode(text)).ids, np.int64)
    if ids.size == 0:
        raise ConfigError("the calibration text holds no token", hint="a longer text")
    if not 0 <= ids.min() <= ids.max() < source.config.vocab_size:
        raise ConfigError(
            f"the tokenizer of {source.name} gives token {ids.max()}, and the model has"
            f" {source.config.vocab_size}",
            hint="the tokenizer that belongs to the model",
        )
    size = min(length, ids.size)
    count = min(sequences, ids.size // size)
    starts = [i * (ids.size - size) // max(count - 1, 1) for i in range(count)]
    return CalibrationWindows(
        windows=np.stack([ids[start : start + size] for start in starts]),
        sequences_asked=sequences,
        length_asked=length,
        text_tokens=int(ids.size),
        text_sha256=hashlib.sha256(text).hexdigest(),
    )


def check_length(config: ModelConfig, length: int) -> None:
    """Raises ConfigError for windows longer than the model's positions."""
    positions = config.max_positions
    if not 1 <= length <= positions:
        raise ConfigError(
            f"calibration windows of {length} tokens do not fit {config.name}, which has"
            f" {positions} positions",
            hint=f"--calibration-length {min(512, positions)}",
        )


def _decode(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the calibration text is not UTF-8: byte 0x{text[error.start]:02x} at offset"
            f" {error.start}",
            hint="iconv -t UTF-8 FILE > FILE.utf8",
        ) from error


def _tokenizer(source: Source) -> Tokenizer:
    files = source.extra_files()
    if "tokenizer.json" not in files:
        raise ConfigError(
            f"{source.name} holds no tokenizer.json, so it cannot be calibrated on a text",
            hint="AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one",
        )
    name = "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_buffer(files[name])
        tokenizer.no_truncation()  # as for the model's own use
        tokenizer.no_padding()
        name = "tokenizer_config.json"
        add_declared_tokens(tokenizer, json.loads(files.get(name, b"{}")))
        return tokenizer
    except Exception as error:  # the library raises bare Exception
        raise WeightError(
            f"{name} of {source.name} cannot be read",
            cause=str(error),
            hint="download it again",
        ) from error
