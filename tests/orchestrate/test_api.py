"""LLM and SamplingParams: order, limits, seeds, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.api import LLM
from flexq_ft.orchestrate.sampling import FIELDS, SamplingParams
from tests.orchestrate.fakes import EOS, VOCAB, FakeNative, fake_llm

ECHO = lambda ids: [*reversed(ids), *[EOS] * 99]  # noqa: E731


def test_order_is_kept_with_fewer_slots_than_prompts() -> None:
    prompts = ["one", "eleven", "a", "seventeen", "bb"]
    results = fake_llm(ECHO, slots=2).generate(prompts, SamplingParams(max_tokens=30))
    assert [r.outputs[0].text for r in results] == [p[::-1] for p in prompts]
    assert [r.prompt for r in results] == prompts


def test_texts_and_ids_may_be_mixed() -> None:
    results = fake_llm(ECHO).generate(["ab", [99, 98]], SamplingParams(max_tokens=2))
    assert [r.outputs[0].token_ids for r in results] == [[98, 97], [98, 99]]
    assert [r.prompt_token_ids for r in results] == [[97, 98], [99, 98]]


def test_one_text_is_one_prompt() -> None:
    assert len(fake_llm(ECHO).generate("abc", SamplingParams(max_tokens=2))) == 1


def test_one_list_of_ids_is_refused_with_the_way_to_say_it() -> None:
    with pytest.raises(ConfigError) as caught:
        fake_llm(ECHO).generate([1, 2, 3])
    assert "[ids]" in caught.value.hint


def test_params_for_each_prompt() -> None:
    params = [SamplingParams(max_tokens=1), SamplingParams(max_tokens=3)]
    results = fake_llm(ECHO).generate(["abc", "def"], params)
    assert [len(r.outputs[0].token_ids) for r in results] == [1, 3]
    with pytest.raises(ConfigError, match="2 SamplingParams"):
        fake_llm(ECHO).generate(["a", "b", "c"], params)
    with pytest.raises(ConfigError, match=r"given by SamplingParams, not by \{'max_tokens': 2\}"):
        fake_llm(ECHO).generate("a", {"max_tokens": 2})  # type: ignore[arg-type]


def test_metrics_count_tokens_and_keep_prefill_and_decode_apart() -> None:
    (result,) = fake_llm(ECHO).generate(["abcd"], SamplingParams(max_tokens=3))
    metrics = result.metrics
    assert (metrics.prompt_tokens, metrics.output_tokens) == (4, 3)
    assert metrics.ttft_ms > 0 and metrics.tpot_ms is not None and metrics.tpot_ms > 0
    assert metrics.prefill_tok_s == pytest.approx(4 / metrics.ttft_ms * 1e3)
    assert metrics.decode_tok_s == pytest.approx(1e3 / metrics.tpot_ms)
    assert metrics.peak_memory_bytes == 12345678


def test_one_output_token_has_no_decode_speed() -> None:
    (result,) = fake_llm(ECHO).generate(["abcd"], SamplingParams(max_tokens=1))
    assert result.metrics.tpot_ms is None and result.metrics.decode_tok_s is None


def test_a_seed_is_always_recorded_and_handed_over() -> None:
    native = FakeNative(ECHO)
    llm = fake_llm(native)
    (given,) = llm.generate(["a"], SamplingParams(max_tokens=1, seed=7))
    drawn = llm.generate(["a", "b"], SamplingParams(max_tokens=1, temperature=1.0))
    assert given.seed == 7
    assert [params["seed"] for _, params in native.admitted] == [7, drawn[0].seed, drawn[1].seed]
    assert drawn[0].seed != drawn[1].seed


def test_the_engine_gets_every_sampling_field_it_knows() -> None:
    native = FakeNative(ECHO)
    fake_llm(native).generate(["a"], SamplingParams(max_tokens=1, stop_words=((1, 2),)))
    fields = set(native.admitted[0][1])
    assert fields == set(FIELDS) - {"stop", "logprobs"}
    assert native.admitted[0][1]["stop_words"] == [[1, 2]]


def test_logprobs_only_when_asked_for() -> None:
    llm = fake_llm(ECHO)
    (without,) = llm.generate(["ab"], SamplingParams(max_tokens=2))
    (with_them,) = llm.generate(["ab"], SamplingParams(max_tokens=2, logprobs=True))
    assert without.outputs[0].logprobs is None and "logprobs" not in without.to_json()
    assert with_them.outputs[0].logprobs == [-0.5, -0.5]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ([], "empty"),
        ([VOCAB], "not in the vocabulary"),
        ([-1], "not in the vocabulary"),
        ("x" * 64, "64 tokens"),
    ],
)
def test_prompts_that_cannot_run_are_refused_before_anything_runs(
    prompt: Any, message: str
) -> None:
    native = FakeNative(ECHO)
    with pytest.raises(ConfigError, match=message):
        fake_llm(native).generate(["fine", prompt])
    assert not native.admitted


def test_a_prompt_of_all_but_one_token_runs() -> None:
    results = fake_llm(ECHO).generate(["x" * 63], SamplingParams(max_tokens=1))
    assert results[0].metrics.prompt_tokens == 63


def test_generate_each_gives_errors_in_their_place() -> None:
    llm = fake_llm(ECHO)
    got = list(llm.generate_each(["ab", "", [13], "cd"], SamplingParams(max_tokens=2)))
    kinds = ["error" if isinstance(r, ConfigError) else "ok" for r in got]
    assert kinds == ["ok", "error", "error", "ok"]


def test_without_a_tokenizer_ids_go_in_and_out() -> None:
    llm = fake_llm(ECHO, tokenizer=False)
    (result,) = llm.generate([[5, 6]], SamplingParams(max_tokens=2))
    assert result.outputs[0].token_ids == [6, 5] and result.outputs[0].text is None
    with pytest.raises(ConfigError, match="no tokenizer"):
        llm.generate(["text"])
    with pytest.raises(ConfigError, match="stop texts"):
        llm.generate([[5]], SamplingParams(stop=["x"]))


@pytest.mark.parametrize(
    "prompt", [[1.5, 2], ["1", "2"], [[1]], None, b"ab", {"prompt": "ab"}, {1: 2}, {1, 2}]
)
def test_what_is_neither_text_nor_ids_is_refused(prompt: Any) -> None:
    llm = fake_llm(ECHO)
    for call in (llm.generate, llm.score, llm.forward_logits):
        with pytest.raises(ConfigError, match="a text or a list of token ids"):
            call([prompt])  # type: ignore[operator]


@pytest.mark.parametrize("prompts", [None, 5, b"ab", {"prompt": "ab"}, {"a", "b"}])
def test_what_is_no_list_of_prompts_is_refused(prompts: Any) -> None:
    llm = fake_llm(ECHO)
    for call in (llm.generate, llm.score, llm.forward_logits, llm.stream):
        with pytest.raises(ConfigError, match=r"lists? of (token )?ids"):
            call(prompts)  # type: ignore[operator]


def test_keys_of_a_mapping_are_a_list_of_prompts() -> None:
    results = fake_llm(ECHO).generate({"ab": 1, "c": 2}.keys())  # type: ignore[arg-type]
    assert [result.prompt for result in results] == ["ab", "c"]


def test_a_stream_takes_params_as_generate_does() -> None:
    llm, params = fake_llm(ECHO), SamplingParams(max_tokens=2)
    assert "".join(piece.text for piece in llm.stream("ab", [params])) == "ba"  # type: ignore[arg-type]
    for other in ({"max_tokens": 2}, 2):
        with pytest.raises(ConfigError, match="given by SamplingParams"):
            llm.stream("ab", other)  # type: ignore[arg-type]


def test_one_text_is_one_text_everywhere() -> None:
    llm = fake_llm(ECHO)
    (scored,) = llm.score("abcd")
    assert scored.token_ids == [*b"abcd"]
    logits = llm.forward_logits("abc")
    assert isinstance(logits, np.ndarray) and logits.shape[0] == 3


def test_score_begins_with_none_and_sums() -> None:
    (tail,) = fake_llm(ECHO).score(["abcd"], first=[3])
    assert tail.logprobs == [None, None, None, -1.0] and tail.sum_logprob == -1.0
    (scored,) = fake_llm(ECHO).score(["abcd"])
    assert scored.logprobs == [None, -1.0, -1.0, -1.0]
    assert scored.sum_logprob == -3.0 and scored.token_ids == [*b"abcd"]


@pytest.mark.parametrize("first", [2, [1.5], ["1"], np.array([1.0])])
def test_first_tokens_that_are_none_are_named(first: Any) -> None:
    with pytest.raises(ConfigError, match=r"first is .*; it must be a list of whole numbers"):
        fake_llm(ECHO).score(["abcd"], first=first)
    (tail,) = fake_llm(ECHO).score(["abcd"], first=np.array([3]))
    assert tail.logprobs[:3] == [None] * 3


def test_forward_logits_of_one_list_and_of_several() -> None:
    llm = fake_llm(ECHO)
    one = llm.forward_logits([1, 2, 3])
    several = llm.forward_logits([[1], [2, 3]])
    assert isinstance(one, np.ndarray) and one.shape == (3, VOCAB) and one.dtype == np.float32
    assert [logits.shape for logits in several] == [(1, VOCAB), (2, VOCAB)]


def test_a_closed_llm_says_so() -> None:
    with fake_llm(ECHO) as llm:
        pass
    with pytest.raises(ConfigError, match="closed"):
        llm.generate("x")


@pytest.mark.parametrize("steps", [0, 1])
def test_a_stream_of_a_closed_llm_says_so(steps: int) -> None:
    native = FakeNative(ECHO)
    llm = fake_llm(native)
    stream = llm.stream("abc")
    for _ in range(steps):
        next(stream)
    llm.close()
    with pytest.raises(ConfigError, match="this LLM is closed"):
        next(stream)
    assert native.released == []  # its slots went with it


def test_unknown_keyword_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        LLM(tmp_path, tensor_paralel_size=2)
    assert "did you mean 'tensor_parallel_size'?" in caught.value.message


@pytest.mark.parametrize("keyword", ["tensor_parallel_size", "threads", "max_len", "max_batch"])
def test_sizes_below_one_are_refused(tmp_path: Path, keyword: str) -> None:
    for value in (0, "2", 2.0, True, 1 << 31):
        with pytest.raises(
            ConfigError, match=f"{keyword} is {value!r}; .* from 1 to 2,147,483,647"
        ):
            LLM(tmp_path, **{keyword: value})
    with pytest.raises(ConfigError) as caught:  # of the folder: NumPy's integers are sizes
        LLM(tmp_path, **{keyword: np.int64(1)})
    assert keyword not in caught.value.message


def test_a_dtype_or_device_that_is_none_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown dtype 'float16'"):
        LLM(tmp_path, dtype="float16")
    with pytest.raises(ConfigError, match="device 'None'"):
        LLM(tmp_path, device=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 1e-9),  # what the engine refuses, before anything runs
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("temperature", 10**400),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", 1 << 63),
        ("max_tokens", 1 << 63),
        ("stop_words", [[1 << 63]]),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("min_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("seed", -1),
        ("seed", 1 << 64),
        ("ignore_eos", 1),
        ("stop", [""]),
        ("stop", [3]),
        ("stop_words", [[]]),
        ("bad_words", [["a"]]),
    ],
)
def test_bad_sampling_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field} is"):
        SamplingParams(**{field: value})


def test_numbers_of_numpy_are_numbers() -> None:
    made = SamplingParams(
        top_k=np.int64(5),
        temperature=np.float32(0.5),
        seed=np.uint64(2**64 - 1),
        logprobs=np.bool_(True),
        stop_words=[[np.int32(3)]],
    )  # type: ignore[arg-type]
    assert (made.top_k, made.temperature, made.seed) == (5, 0.5, 2**64 - 1)
    assert [type(x) for x in (made.top_k, made.temperature, made.logprobs)] == [int, float, bool]
    with pytest.raises(ConfigError, match=r"top_k is 1\.5; it must be a whole number"):
        SamplingParams(top_k=np.float64(1.5))  # type: ignore[arg-type]


def test_both_penalties_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be used together"):
        SamplingParams(repetition_penalty=1.1, presence_penalty=0.1)


def test_more_min_than_max_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="min_tokens is 5"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_one_stop_text_may_be_given_bare() -> None:
    assert SamplingParams(stop="end").stop == ("end",)
