"""tokenizer.json, its settings and the chat template, rebuilt from a GGUF file's metadata.

Byte-level BPE only. How text is cut before merging is not in the file, only the name of a way:
those below are what the models of that name ship in their own tokenizer.json; others are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from flexq_ft.errors import WeightError

__all__ = ["tokenizer_files"]

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, kw_only=True)
class _Pre:
    """split: pattern of the pieces, None for GPT-2's; digits: each is a piece of its own."""

    split: str | None = None
    digits: bool = False
    normalize: bool = False  # to NFC
    whole_words: bool = False  # a piece that is a token is taken without merging
    add_bos: bool = False  # where the file does not say


_LLAMA3 = _Pre(
    split=_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL,
    whole_words=True,
    add_bos=True,
)
_PRE_TYPES = {
    "gpt-2": _Pre(),
    "smollm": _Pre(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _Pre(
        split=_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL, normalize=True
    ),
}


def tokenizer_files(metadata: Mapping[str, Any], *, name: str, positions: int) -> dict[str, bytes]:
    """File name -> content; empty when the file holds no tokenizer.

    Raises WeightError for a kind of tokenizer, or a way of cutting, that is not known here.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind in (None, "none"):
        return {}
    if kind != "gpt2":
        raise WeightError(
            f"tokenizer {kind!r} of {name} is not supported",
            hint="supported in GGUF: gpt2 (byte-level BPE); or convert the Hugging Face checkpoint",
        )
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in _PRE_TYPES:
        raise WeightError(
            f"pre-tokenizer {pre!r} of {name} is not supported",
            hint=f"supported: {', '.join(_PRE_TYPES)}; or convert the Hugging Face checkpoint",
        )
    way = _PRE_TYPES[pre]
    tokenizer = _build(metadata, way, name)
    settings = _settings(metadata, positions)
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", way.add_bos))
    if add_bos and settings.get("bos_token"):
        bos = settings["bos_token"]
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{bos} $A",
                    pair=f"{bos} $A {bos}:1 $B:1",
                    special_tokens=[(bos, int(metadata["tokenizer.ggml.bos_token_id"]))],
                ),
            ]
        )
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": (
            json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        ).encode(),
    }


def _build(metadata: Mapping[str, Any], way: _Pre, name: str) -> Tokenizer:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    if len(set(tokens)) != len(tokens) or any(len(merge) != 2 for merge in merges):
        raise WeightError(
            f"the tokenizer of {name} has repeated tokens or faulty merges",
            hint="download it again",
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=way.whole_words))
    except Exception as error:  # the library raises bare exceptions
        raise WeightError(
            f"the tokenizer of {name} is faulty", cause=str(error), hint="download it again"
        ) from error
    tokenizer.pre_tokenizer = _pre_tokenizer(way)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if way.normalize:
        tokenizer.normalizer = normalizers.NFC()
    types = metadata.get("tokenizer.ggml.token_type") or []
    added = list(zip(tokens, types, strict=False))
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, kind in added if kind == _CONTROL]
    )
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t, kind in added if kind == _USER_DEFINED]
    )
    return tokenizer


def _pre_tokenizer(way: _Pre) -> pre_tokenizers.PreTokenizer:
    steps: list[pre_tokenizers.PreTokenizer] = []
    if way.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if way.split:
        steps.append(pre_tokenizers.Split(Regex(way.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=way.split is None))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


def _settings(metadata: Mapping[str, Any], positions: int) -> dict[str, Any]:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": positions,
    }
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None and 0 <= token_id < len(tokens):
            settings[f"{role}_token"] = tokens[token_id]
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    return settings
