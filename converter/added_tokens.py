"""Tokens that tokenizer_config.json declares, by its added_tokens_decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

__all__ = ["add_declared_tokens"]

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def add_declared_tokens(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Add those that tokenizer.json lacks, or has with other flags, as transformers does: a new one
    gets the next free id. Raises TypeError, ValueError or LookupError if they are no such table.
    """
    declared = dict(config.get("added_tokens_decoder", {}))
    entries = [declared[token_id] for token_id in sorted(declared, key=int)]
    tokenizer.add_tokens(
        [
            AddedToken(entry["content"], **{flag: entry[flag] for flag in _FLAGS if flag in entry})
            for entry in entries
        ]
    )
