"""Text as tokens come: whole characters, stop texts, an end when nobody listens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.api import LLM
from flexq_ft.orchestrate.outputs import StopTexts
from flexq_ft.orchestrate.sampling import SamplingParams
from flexq_ft.orchestrate.tokenizer import Detokenizer, Tokenizer
from tests.orchestrate.fakes import EOS, FakeNative, byte_tokenizer, fake_llm, says

AWKWARD = "naïve 日本語 👩‍👩‍👧 e\u0301 \u200d end"


def test_no_piece_holds_a_cut_character() -> None:
    llm = fake_llm(says(AWKWARD))
    pieces = [piece.text for piece in llm.stream("x", SamplingParams(max_tokens=200))]
    assert "".join(pieces) == AWKWARD
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 10  # it did stream


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_pieces_add_up_to_the_text(text: str) -> None:
    detokenizer = Detokenizer(byte_tokenizer())
    pieces = [detokenizer.push(token) for token in text.encode()] + [detokenizer.flush()]
    assert "".join(pieces) == text


def llama_tokenizer() -> Tokenizer:
    """Words with a blank before each, which decoding leaves out of the first, as LLaMA 2's does."""
    words = ["<unk>", "▁The", "▁sky", "▁is", "▁blue", "s"]
    hf = HfTokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    hf.pre_tokenizer = pre_tokenizers.Metaspace()
    hf.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(hf, {}, None)


def test_the_blank_between_prompt_and_output_is_the_outputs() -> None:
    tokenizer = llama_tokenizer()
    assert tokenizer.encode("The sky is") == [1, 2, 3] and tokenizer.decode([4]) == "blue"
    native = FakeNative(lambda ids: [4, 2, 5, *[EOS] * 9])
    llm = LLM.from_engine(fake_llm(native)._engine, tokenizer)  # type: ignore[arg-type]
    (result,) = llm.generate(["The sky is"], SamplingParams(max_tokens=3))
    assert result.outputs[0].text == " blue skys"
    pieces = list(llm.stream("The sky is", SamplingParams(max_tokens=3)))
    assert "".join(piece.text for piece in pieces) == " blue skys"


@given(st.text(max_size=12), st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_pieces_after_a_prompt_are_what_it_is_continued_by(prompt: str, text: str) -> None:
    data = prompt.encode(errors="ignore")
    detokenizer = Detokenizer(byte_tokenizer(), list(data))
    pieces = [detokenizer.push(token) for token in text.encode()] + [detokenizer.flush()]
    assert "".join(pieces) == text


def test_a_prompt_that_ends_within_a_character_gives_nothing_of_it() -> None:
    begin, end = "日".encode()[:2], "日".encode()[2:]
    detokenizer = Detokenizer(byte_tokenizer(), list(begin))
    pieces = [detokenizer.push(token) for token in end + b"ok"] + [detokenizer.flush()]
    assert "".join(pieces) == "\ufffdok"


@given(st.binary(max_size=24))
def test_bytes_that_are_no_utf8_come_out_as_decode_gives_them(data: bytes) -> None:
    tokenizer = byte_tokenizer()
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in data] + [detokenizer.flush()]
    assert "".join(pieces) == tokenizer.decode(list(data))


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    llm = fake_llm(lambda ids: [*"a語".encode()[:3], *[EOS] * 5])
    (result,) = llm.generate("x", SamplingParams(max_tokens=3))
    assert result.outputs[0].text == "a\ufffd"
    assert result.outputs[0].finish_reason == "length"


def test_special_tokens_are_not_in_the_text_but_in_the_ids() -> None:
    (result,) = fake_llm(says("hi")).generate("x", SamplingParams(max_tokens=10))
    assert result.outputs[0].text == "hi"
    assert result.outputs[0].token_ids == [*b"hi", EOS]
    assert result.outputs[0].finish_reason == "stop"


@pytest.mark.parametrize("stop", ["STOP", "S", "OP."])
def test_the_text_is_cut_before_the_stop_text(stop: str) -> None:
    native = FakeNative(says("go on STOP. never seen"))
    llm = fake_llm(native)
    params = SamplingParams(max_tokens=60, stop=[stop])
    pieces = list(llm.stream("x", params))
    expected = "go on STOP. never seen".split(stop)[0]
    assert "".join(piece.text for piece in pieces) == expected
    assert pieces[-1].finish_reason == "stop"
    assert pieces[-1].output is not None and pieces[-1].output.outputs[0].text == expected
    assert native.released == [0] and not native.running  # decoding ended there


def test_generate_stops_one_sequence_and_goes_on_with_the_others() -> None:
    native = FakeNative(lambda ids: [*bytes(ids), *b" tail", *[EOS] * 40], slots=2)
    results = fake_llm(native).generate(["a!b", "plain"], SamplingParams(max_tokens=30, stop=["!"]))
    assert [r.outputs[0].text for r in results] == ["a", "plain tail"]
    assert not native.running


def test_what_might_have_become_a_stop_text_is_given_at_the_end() -> None:
    (result,) = fake_llm(says("half ST")).generate(
        "x", SamplingParams(max_tokens=50, stop=["STOP"])
    )
    assert result.outputs[0].text == "half ST"


def test_min_tokens_hold_for_stop_texts_too() -> None:
    params = SamplingParams(max_tokens=20, min_tokens=3, stop=["a"])
    (result,) = fake_llm(says("aaaaa")).generate("x", params)
    assert len(result.outputs[0].token_ids) == 3


@given(
    st.lists(st.text(alphabet="ab", max_size=4), max_size=8),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=3), min_size=1, max_size=2),
)
def test_stop_texts_are_found_however_the_text_is_cut(parts: list[str], stops: list[str]) -> None:
    whole = "".join(parts)
    at = min((whole.find(stop) for stop in stops if stop in whole), default=None)
    watcher = StopTexts(tuple(stops))
    shown, stopped = "", False
    for part in parts:
        text, stopped = watcher.push(part)
        shown += text
        if stopped:
            break
    if at is None:
        assert not stopped and shown + watcher.flush() == whole
    else:
        # The first one to be complete ends the text, so a longer one that begins earlier may not.
        assert stopped and whole.startswith(shown) and len(shown) >= at


def test_closing_the_stream_stops_decoding() -> None:
    native = FakeNative(says("a long answer"))
    stream = fake_llm(native).stream("x", SamplingParams(max_tokens=50))
    next(stream)
    next(stream)
    stream.close()
    assert native.steps == 2 and native.released == [0]


def test_an_error_in_a_step_reaches_the_reader_and_frees_the_slot() -> None:
    native = FakeNative(says("x"), step_error=RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        list(fake_llm(native).stream("x"))
    assert native.released == [0]


def test_stream_and_generate_give_the_same_result() -> None:
    params = SamplingParams(max_tokens=40, seed=3, logprobs=True, stop=["!"])
    (whole,) = fake_llm(says("one two! three")).generate("x", params)
    last = list(fake_llm(says("one two! three")).stream("x", params))[-1]
    assert last.output is not None

    def without_times(result: Any) -> dict[str, Any]:
        return {k: v for k, v in result.to_json().items() if k != "metrics"}

    assert without_times(whole) == without_times(last.output)


def test_a_second_stream_beside_an_open_one_is_refused() -> None:
    llm = fake_llm(says("some text"))
    stream = llm.stream("x", SamplingParams(max_tokens=20))
    next(stream)
    with pytest.raises(ConfigError, match="still open"):
        llm.generate("y")
    assert "".join(piece.text for piece in stream) == "ome text"
    assert len(llm.generate("y", SamplingParams(max_tokens=1))) == 1
