"""A tied checkpoint's own head: where there is one, it must be the embedding once more."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from flexq_ft.converter.architectures.spec import Unit
from flexq_ft.converter.source import Source
from flexq_ft.errors import WeightError

__all__ = ["refuse_other_head"]

_HEAD = "lm_head.weight"
_ROWS = 4096  # read at a time


def refuse_other_head(source: Source, units: Iterable[Unit]) -> None:
    """Raises WeightError for a head that a tied model would lose.

    config.json ties the two and the file has both, with other values: transformers then believes
    the file, and a model without that head would speak nonsense.
    """
    if not source.config.tie_word_embeddings or _HEAD not in source.tensors:
        return
    embedding = next(u.parts[0].name for u in units if u.stem.startswith("model.wte"))
    if _digest(source, embedding) != _digest(source, _HEAD):
        raise WeightError(
            f"{_HEAD} of {source.name} is not {embedding}, though config.json ties them",
            cause="tie_word_embeddings is true, or absent where that means true",
            hint='"tie_word_embeddings": false in config.json',
        )


def _digest(source: Source, name: str) -> bytes:
    """Of the values, whatever their type. One tensor after the other: shards are read in order."""
    digest = hashlib.sha256()
    rows = source.tensors[name].shape[0]
    for begin in range(0, rows, _ROWS):
        values = source.read_rows(name, begin, min(begin + _ROWS, rows))
        digest.update(np.ascontiguousarray(values, dtype=np.float32).data)
    return digest.digest()
