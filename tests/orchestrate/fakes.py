"""A scripted native engine and a tokenizer of single bytes: what the layers above do with tokens,
without a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.api import LLM
from flexq_ft.orchestrate.engine.info import EngineInfo
from flexq_ft.orchestrate.engine.local import LocalEngine
from flexq_ft.orchestrate.tokenizer import Tokenizer

EOS = 256
VOCAB = 260
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_alphabet() -> list[str]:
    """The character that byte-level BPE writes for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [table[b] for b in range(256)]


def byte_tokenizer(*, chat_template: str | None = TEMPLATE) -> Tokenizer:
    """Token id = byte; 256 is the end token."""
    return Tokenizer(hf_byte_tokenizer(), {"eos_token": "</s>"}, chat_template)


def hf_byte_tokenizer() -> HfTokenizer:
    vocab = {character: byte for byte, character in enumerate(byte_alphabet())}
    tokenizer = HfTokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def save_byte_tokenizer(folder: Path) -> None:
    hf_byte_tokenizer().save(str(folder / "tokenizer.json"))


Script = Callable[[list[int]], Sequence[int]]


class FakeNative:
    """`_native.Engine`: the output of each prompt is scripted; slots and limits are real."""

    def __init__(self, script: Script, *, slots: int = 2, step_error: Exception | None = None):
        self.script = script
        self.free = list(range(slots))
        self.running: dict[int, dict[str, Any]] = {}
        self.steps = 0
        self.steps_taken = 0
        self.released: list[int] = []
        self.admitted: list[tuple[list[int], dict[str, Any]]] = []
        self.step_error = step_error
        self.gate: threading.Event | None = None  # steps after the first wait for it …
        self.at_gate = threading.Event()  # … and say that they do

    def can_admit(self, prompt_tokens: int, max_tokens: int) -> bool:
        return bool(self.free)

    def admit(self, ids: list[int], **params: Any) -> int:
        self.admitted.append((ids, params))
        if ids[0] == 13:
            raise ConfigError("the engine refuses prompts that begin with 13")
        slot = self.free.pop(0)
        self.running[slot] = {"out": list(self.script(ids)), "given": 0, "params": params}
        return slot

    def step(self) -> list[tuple[int, int, float, str | None]]:
        if self.step_error is not None:
            raise self.step_error
        if self.gate is not None and self.steps > 0:
            self.at_gate.set()
            assert self.gate.wait(30)
        self.steps += 1
        outputs = []
        for slot, state in self.running.items():
            assert not state.get("finished"), "a finished slot must be released, not stepped"
            token = state["out"][state["given"]]
            state["given"] += 1
            finish = None
            if token == EOS and not state["params"]["ignore_eos"]:
                finish = "stop"
            elif state["given"] == state["params"]["max_tokens"]:
                finish = "length"
            state["finished"] = finish is not None
            outputs.append((slot, token, -0.5, finish))
        return outputs

    def release(self, slot: int) -> None:
        del self.running[slot]
        self.free.append(slot)
        self.released.append(slot)

    def forward(self, ids: list[int]) -> Any:
        return np.arange(len(ids) * VOCAB, dtype=np.float32).reshape(len(ids), VOCAB)

    def score(self, ids: list[int], first: int = 1) -> tuple[Any, Any]:
        count = len(ids) - first
        return np.full(count, -1.0, np.float32), np.zeros(count, np.int64)

    def score_batch(self, texts: list[list[int]], first: list[int]) -> list[tuple[Any, Any]]:
        return [self.score(ids, begin) for ids, begin in zip(texts, first, strict=True)]

    def peak_memory_bytes(self) -> int:
        return 12345678

    def take_step_times(self) -> list[float]:
        """The first step takes 10 ms, each later one 2."""
        times = [10.0 if step == 0 else 2.0 for step in range(self.steps - self.steps_taken)]
        self.steps_taken = self.steps
        return times

    def step_profile(self, batch: int, context: int) -> list[dict[str, Any]]:
        nodes = [("qkv", 0, 0.5, 4_000_000), ("qkv", 1, 0.5, 4_000_000), ("sample", 0, 0.25, 0)]
        return [
            {"name": name, "layer": layer, "ms": ms, "bytes": size}
            for name, layer, ms, size in nodes
        ]


def fake_info(*, max_len: int = 64, sliding_window: int | None = None) -> EngineInfo:
    return EngineInfo(
        model_dir="fake/1-gpu",
        name="fake",
        architecture="llama",
        vocab_size=VOCAB,
        eos_ids=[EOS],
        max_len=max_len,
        sliding_window=sliding_window,
        max_batch=2,
        kv_tokens=2 * 64,
        scheme="fp16",
        dtype="fp32",
        policy=None,
        lm_head="fp16",
        tensor_parallel_size=1,
        threads=1,
        device="cpu",
        memory_bytes={"weights": 1000, "kv_cache": 500},
    )


def says(text: str) -> Script:
    """Every prompt is answered with this text, then the end token for ever."""
    return lambda ids: [*text.encode(), *[EOS] * 200]


def fake_llm(
    script: Script | FakeNative,
    *,
    tokenizer: bool = True,
    max_len: int = 64,
    sliding_window: int | None = None,
    **options: Any,
) -> LLM:
    native = script if isinstance(script, FakeNative) else FakeNative(script, **options)
    engine = LocalEngine(native, fake_info(max_len=max_len, sliding_window=sliding_window))
    return LLM.from_engine(engine, byte_tokenizer() if tokenizer else None)
