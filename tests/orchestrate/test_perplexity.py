"""Perplexity by protocol, against NumPy and, where it is installed, Hugging Face."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from flexq_ft.errors import ConfigError, WeightError
from flexq_ft.orchestrate.eval.agreement import top1_agreement
from flexq_ft.orchestrate.eval.perplexity import (
    PROTOCOLS,
    TextProtocol,
    cut_windows,
    evaluate,
    protocol_text,
)

VOCAB = 61
TEXT = (
    " = A title = \n \nThe quick brown fox.\nA second line with café.\n\n \t\nLast line, no end"
).encode()


def encode(text: str) -> list[int]:
    return [byte % VOCAB for byte in text.encode()]


class BigramScorer:
    """A model whose logits depend on the previous token only: a table [VOCAB, VOCAB]."""

    def __init__(self, seed: int = 3) -> None:
        self.logits = np.random.default_rng(seed).normal(size=(VOCAB, VOCAB))
        self.seen: list[list[int]] = []

    def score(self, ids: Sequence[int], /) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        self.seen.append(list(ids))
        logits = self.logits[list(ids[:-1])]
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        chosen = logprobs[np.arange(len(ids) - 1), list(ids[1:])]
        return chosen.astype(np.float32), logits.argmax(axis=1)


def numpy_perplexity(model: BigramScorer, ids: list[int], *, window: int) -> float:
    losses = []
    for start in range(0, len(ids) - window + 1, window):
        loss = 0.0
        for before, after in itertools.pairwise(ids[start : start + window]):
            row = np.exp(model.logits[before] - model.logits[before].max())
            loss -= math.log(row[after] / row.sum())
        losses.append(loss / (window - 1))
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("window", [2, 7, 16, 33])
def test_against_numpy(protocol: TextProtocol, window: int) -> None:
    model = BigramScorer()
    text = cut_windows(TEXT, encode, protocol=protocol, max_positions=64, window=window)
    result = evaluate(model, text)
    ids = encode(protocol_text(TEXT, protocol=protocol))
    assert result.perplexity == pytest.approx(numpy_perplexity(model, ids, window=window), rel=1e-6)
    assert len(text.windows) == len(ids) // window == len(result.window_losses)
    assert text.used_tokens == len(text.windows) * window
    assert all(len(seen) == window for seen in model.seen)


def test_rows_of_the_paper_protocol() -> None:
    expected = (
        " = A title = \n" "\n\n" "" "\n\n" "The quick brown fox.\n" "\n\n"
        "A second line with café.\n" "\n\n" "" "\n\n" "" "\n\n" "Last line, no end"
    )  # fmt: skip
    assert protocol_text(TEXT, protocol="paper") == expected
    assert protocol_text(TEXT, protocol="raw").encode() == TEXT


def test_paper_rows_end_at_newlines_only() -> None:
    """A form feed, a vertical tab and U+2028 are characters of a row, not its end."""
    data = "one\x0ctwo\u2028three\x0bfour\r\nfive\n".encode()
    expected = "one\x0ctwo\u2028three\x0bfour\n\n\nfive\n"
    assert protocol_text(data, protocol="paper") == expected
    assert protocol_text(data, protocol="raw").encode() == data


def test_window_is_2048_or_the_positions_of_the_model() -> None:
    data = b"x" * 5000
    for positions, expected in ((512, 512), (2048, 2048), (8192, 2048)):
        text = cut_windows(data, encode, protocol="raw", max_positions=positions)
        assert text.window == expected
        assert len(text.windows) == 5000 // expected


def test_last_partial_window_is_dropped_and_counted() -> None:
    text = cut_windows(b"abcdefghij", encode, protocol="raw", max_positions=64, window=4)
    assert text.windows.tolist() == [encode("abcd"), encode("efgh")]
    assert (text.text_tokens, text.used_tokens, text.short_text) == (10, 8, False)


def test_text_shorter_than_a_window_is_used_whole_and_says_so() -> None:
    text = cut_windows(b"abcde", encode, protocol="raw", max_positions=64)
    result = evaluate(BigramScorer(), text)
    assert (len(text.windows), text.used_tokens, text.short_text) == (1, 5, True)
    assert result.standard_error is None
    assert "shorter than one window" in result.describe()


def test_max_windows_takes_the_first() -> None:
    text = cut_windows(
        b"abcdefghij", encode, protocol="raw", max_positions=64, window=3, max_windows=2
    )
    assert text.windows.tolist() == [encode("abc"), encode("def")]


def test_standard_error_is_that_of_the_window_mean() -> None:
    result = evaluate(
        BigramScorer(), cut_windows(TEXT, encode, protocol="raw", max_positions=64, window=9)
    )
    losses = np.array(result.window_losses)
    expected = math.exp(losses.mean()) * losses.std(ddof=1) / math.sqrt(len(losses))
    assert result.standard_error == pytest.approx(expected)


def test_result_carries_its_protocol() -> None:
    result = evaluate(
        BigramScorer(), cut_windows(TEXT, encode, protocol="paper", max_positions=16)
    ).to_json()
    assert json.loads(json.dumps(result)) == result
    assert (result["protocol"], result["window"], result["stride"]) == ("paper", 16, 16)
    assert result["text_sha256"] == hashlib.sha256(TEXT).hexdigest()
    for part in ("protocol paper", "window 16", "stride 16", "windows", result["text_sha256"][:12]):
        assert part in result["description"]


@pytest.mark.parametrize("window", [1, 65])
def test_window_that_does_not_fit_is_refused(window: int) -> None:
    with pytest.raises(ConfigError, match=f"{window} tokens"):
        cut_windows(TEXT, encode, protocol="raw", max_positions=64, window=window)


@pytest.mark.parametrize("data", [b"", b"x"])
def test_text_without_a_second_token_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match=f"{len(data)} tokens"):
        cut_windows(data, encode, protocol="raw", max_positions=64)


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ConfigError, match="0xff at offset 2"):
        cut_windows(b"ab\xff", encode, protocol="paper", max_positions=64)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_loss_that_is_not_finite_is_an_error(bad: float) -> None:
    class Broken(BigramScorer):
        def score(
            self, ids: Sequence[int], /
        ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
            logprobs, best = super().score(ids)
            if len(self.seen) == 2:
                logprobs[3] = bad
            return logprobs, best

    text = cut_windows(TEXT, encode, protocol="raw", max_positions=64, window=16)
    with pytest.raises(WeightError, match="window 1 of"):
        evaluate(Broken(), text)


def test_agreement_counts_equal_choices() -> None:
    ours = np.array([[1, 2, 3], [4, 5, 6]])
    theirs = np.array([[1, 2, 0], [4, 0, 6]])
    assert top1_agreement(ours, theirs) == pytest.approx(4 / 6)
    assert top1_agreement(ours, ours) == 1.0


def test_agreement_of_different_windows_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot compare choices"):
        top1_agreement(np.zeros((2, 3), dtype=np.int64), np.zeros((3, 2), dtype=np.int64))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_against_hugging_face(protocol: TextProtocol) -> None:
    """The mean of the losses that transformers itself computes, on the same windows."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()

    class TorchScorer:
        def score(
            self, ids: Sequence[int], /
        ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
            with torch.no_grad():
                logits = model(torch.tensor([list(ids)])).logits[0, :-1].double().numpy()
            logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            chosen = logprobs[np.arange(len(ids) - 1), list(ids[1:])]
            return chosen.astype(np.float32), logits.argmax(axis=1)

    result = evaluate(TorchScorer(), cut_windows(TEXT, encode, protocol=protocol, max_positions=32))
    ids = torch.tensor(encode(protocol_text(TEXT, protocol=protocol)))
    losses = []
    with torch.no_grad():
        for start in range(0, len(ids) - 31, 32):
            window = ids[start : start + 32][None]
            losses.append(model(window, labels=window).loss.item())
    assert result.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_shipped_text_is_one_plain_page() -> None:
    folder = Path(__file__).parents[2] / "configs" / "texts"
    for path in folder.glob("*.txt"):
        words = path.read_text(encoding="ascii").split()
        assert 500 <= len(words) <= 1000
