"""Chat: the template, the history, the commands, the interrupt."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexq_ft.errors import ConfigError, WeightError
from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.cli.streams import prepare_streams
from flexq_ft.orchestrate.conversation import Conversation
from flexq_ft.orchestrate.tokenizer import Tokenizer
from tests.orchestrate.fakes import EOS, FakeNative, byte_tokenizer, says
from tests.orchestrate.schemas import validate

Use = Callable[..., list[dict[str, Any]]]
Capture = pytest.CaptureFixture[str]
MESSAGES = [{"role": "user", "content": "hi"}]


def type_lines(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))


def prompts(native: FakeNative) -> list[str]:
    return [bytes(ids).decode() for ids, _ in native.admitted]


def test_history_goes_through_the_template(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = FakeNative(says("yes"))
    use_model(native, max_len=256)
    type_lines(monkeypatch, "one?", "two?")
    assert run_cli(["chat", "m", "--system", "be brief", "--max-tokens", "9"]) == 0
    assert capsys.readouterr().out == "yes\nyes\n"
    first = "<system>be brief<user>one?<assistant>"
    assert prompts(native) == [first, first + "yes<user>two?<assistant>"]


def test_the_blank_before_a_reply_is_no_part_of_it(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = FakeNative(says("  a  b"))
    use_model(native, max_len=256)
    type_lines(monkeypatch, "one?", "two?")
    assert run_cli(["chat", "m", "--max-tokens", "9"]) == 0
    assert capsys.readouterr().out == "a  b\na  b\n"
    assert prompts(native)[1] == "<user>one?<assistant>a  b<user>two?<assistant>"


def test_a_message_that_is_no_utf8_is_refused_and_the_chat_goes_on(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = FakeNative(says("yes"))
    use_model(native, max_len=256)
    typed = io.TextIOWrapper(io.BytesIO(b"one?\ncaf\xe9\ntwo?\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", typed)
    prepare_streams()
    assert run_cli(["chat", "m", "--max-tokens", "9"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "yes\nyes\n"
    assert "'\\udce9': half of a pair, or a byte that is no UTF-8" in captured.err
    assert len(prompts(native)) == 2


def test_run_with_the_template_leaves_that_blank_out_too(
    use_model: Use, capsys: Capture, tmp_path: Path
) -> None:
    use_model(says("  a  b"), max_len=256)
    saved = tmp_path / "out.json"
    command = ["run", "m", "one?", "--max-tokens", "9", "--save", str(saved)]
    assert run_cli([*command, "--chat-template"]) == 0
    assert capsys.readouterr().out == "a  b\n"
    assert json.loads(saved.read_text())["results"][0]["text"] == "a  b"
    assert run_cli(command) == 0  # the text's own
    assert capsys.readouterr().out == "  a  b\n"


def test_reset_and_system_commands(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = FakeNative(says("ok"))
    use_model(native, max_len=256)
    lines = ["a", "/reset", "b", "/system new", "c", "/system", "d", "/nonsense", "/stats"]
    type_lines(monkeypatch, *lines)
    assert run_cli(["chat", "m", "--system", "s", "--max-tokens", "9"]) == 0
    assert prompts(native) == [
        "<system>s<user>a<assistant>",
        "<system>s<user>b<assistant>",
        "<system>new<user>c<assistant>",
        "<user>d<assistant>",
    ]
    err = capsys.readouterr().err
    assert "/nonsense is no command" in err and "in 4 replies" in err


def test_save_writes_the_messages(
    use_model: Use, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_model(says("ok"))
    type_lines(monkeypatch, "a", f"/save {tmp_path / 'chat.json'}")
    assert run_cli(["chat", "m", "--max-tokens", "9"]) == 0
    assert json.loads((tmp_path / "chat.json").read_text()) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "ok"},
    ]


def test_json_gives_the_conversation_at_the_end(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_model(says("ok"))
    type_lines(monkeypatch, "a")
    assert run_cli(["chat", "m", "--json", "--max-tokens", "9"]) == 0
    document = json.loads(capsys.readouterr().out)
    validate(document, "chat.json")
    assert document["results"][0]["messages"][1] == {"role": "assistant", "content": "ok"}


def test_a_full_context_drops_the_oldest_turns_and_says_so(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = FakeNative(says("0123456789"))
    use_model(native, max_len=100)
    type_lines(monkeypatch, "first", "second", "third")
    assert run_cli(["chat", "m", "--system", "sys", "--max-tokens", "12"]) == 0
    assert "2 oldest messages were dropped" in capsys.readouterr().err
    last = prompts(native)[-1]
    assert last.startswith("<system>sys<user>second<assistant>0123456789<user>third")


def test_a_long_limit_of_replies_does_not_cost_the_history(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = FakeNative(says("0123456789"))
    use_model(native, max_len=400)
    type_lines(monkeypatch, "first", "second", "third")
    assert run_cli(["chat", "m"]) == 0  # up to 1,024 tokens of a reply
    assert "dropped" not in capsys.readouterr().err
    assert [params["max_tokens"] for _, params in native.admitted] == [
        400 - len(prompt) for prompt in prompts(native)
    ]
    assert prompts(native)[-1].startswith("<user>first")


def test_a_message_longer_than_the_context_is_refused_and_forgotten(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = FakeNative(says("ok"))
    use_model(native, max_len=50)
    type_lines(monkeypatch, "x" * 60, "short")
    assert run_cli(["chat", "m", "--max-tokens", "5"]) == 0
    assert "does not fit in 50" in capsys.readouterr().err
    assert prompts(native) == ["<user>short<assistant>"]


def test_the_reply_is_bounded_by_what_is_left_of_the_context() -> None:
    conversation = Conversation(byte_tokenizer(), max_len=40)
    ids, dropped = conversation.ask("x" * 10, reply_tokens=128)
    assert dropped == 0 and len(ids) < 40


def test_ctrl_c_stops_the_reply_and_not_the_chat(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(FakeNative):
        def step(self) -> Any:
            if self.steps == 1:
                signal.raise_signal(signal.SIGINT)
            return super().step()

    native = Interrupted(says("abcdef"))
    use_model(native, max_len=256)
    type_lines(monkeypatch, "one", "/stats", "two", "/stats")
    assert run_cli(["chat", "m", "--max-tokens", "9"]) == 0
    captured = capsys.readouterr()
    assert "[stopped after 2 tokens, " in captured.err and "tokens in 1 replies" in captured.err
    assert captured.out == "ab\nabcdef\n" and "[stopped]" in captured.err
    assert prompts(native)[1] == "<user>one<assistant>ab<user>two<assistant>"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_model_without_template_is_told_to_run(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_model(says("ok"), tokenizer=False)
    assert run_cli(["chat", "m"]) == 2
    assert "flexq-ft run m PROMPT" in capsys.readouterr().err


def tokenizer(template: str, **config: Any) -> Tokenizer:
    base = byte_tokenizer()
    return Tokenizer(base._tokenizer, config, template)


def test_templates_get_the_functions_and_tokens_that_they_expect() -> None:
    template = (
        "{{ bos_token }}{%- for m in messages %}{% if loop.first %}{{ m | tojson }}{% endif %}"
        "{% break %}{% endfor %}{{ strftime_now('%Y') | length }}{{ eos_token }}"
    )
    text = tokenizer(template, bos_token={"content": "<s>"}, eos_token="</s>").apply_chat_template(
        [{"role": "user", "content": "é"}]
    )
    assert text == '<s>{"role": "user", "content": "é"}4</s>'


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | tojson(indent=2, ensure_ascii=False, sort_keys=True) }}",
        "{{ messages | tojson(separators=(',', ':'), ensure_ascii=True) }}",
        "{% for m in messages %}\n  {% generation %}\n{{ m.content }}\n  {% endgeneration %}\n"
        "{% endfor %}",
        "{% generation %}{% for m in messages %}{{ m.role }}{% endfor %}{% endgeneration %}.",
        "{% generation %}{% set end = '!' %}{{ end }}{% endgeneration %}{{ end }}",
    ],
)
def test_templates_are_rendered_as_by_transformers(template: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "<b>"}]
    (expected,), _ = utils.render_jinja_template([messages], chat_template=template)
    assert tokenizer(template).apply_chat_template(messages) == expected


@pytest.mark.parametrize("template", ["{{ 1 + messages }}", "{{ 1 // 0 }}", "{{ {}['a'].b.c() }}"])
def test_a_template_that_fails_is_said(template: str) -> None:
    with pytest.raises(ConfigError, match="chat template failed"):
        tokenizer(template).apply_chat_template(MESSAGES)


def test_a_template_that_refuses_is_a_usage_error() -> None:
    with pytest.raises(ConfigError) as caught:
        tokenizer("{{ raise_exception('no system message') }}").apply_chat_template(MESSAGES)
    assert caught.value.cause == "no system message"


def test_a_broken_template_is_a_fault_of_the_model() -> None:
    with pytest.raises(WeightError, match="syntax"):
        tokenizer("{% for %}").apply_chat_template(MESSAGES)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append('x') }}",
        "{{ raise_exception.__globals__['os'] }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(attack: str) -> None:
    with pytest.raises(ConfigError):
        tokenizer(attack).apply_chat_template(MESSAGES)


def test_template_files_are_found(tmp_path: Path) -> None:
    from tests.orchestrate.fakes import save_byte_tokenizer

    assert Tokenizer.load(tmp_path) is None
    save_byte_tokenizer(tmp_path)
    config = {"chat_template": [{"name": "default", "template": "from config"}, "odd"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Tokenizer.load(tmp_path)
    assert loaded is not None and loaded.apply_chat_template(MESSAGES) == "from config"
    (tmp_path / "chat_template.jinja").write_text("from the file")
    loaded = Tokenizer.load(tmp_path)
    assert loaded is not None and loaded.apply_chat_template(MESSAGES) == "from the file"
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ '\xff' }}")
    with pytest.raises(WeightError, match=r"chat_template\.jinja cannot be read"):
        Tokenizer.load(tmp_path)
    assert loaded.encode("a") == [97] and loaded.decode([97, EOS]) == "a"
    with pytest.raises(ConfigError, match="the text is not Unicode") as caught:
        loaded.encode("ab\ud800")
    assert "character 2" in caught.value.cause


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "<s>|</s>|<pad>"),
        ({"added_tokens_decoder": {"300": {"content": "[B]", "special": True}}}, "[B]||<pad>"),
    ],
)
def test_special_tokens_in_a_file_of_their_own_count_as_in_transformers(
    tmp_path: Path, more: dict[str, Any], expected: str
) -> None:
    from tests.orchestrate.fakes import save_byte_tokenizer

    transformers = pytest.importorskip("transformers")
    save_byte_tokenizer(tmp_path)
    template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}"
    config = {"chat_template": template, "bos_token": "[B]", "pad_token": "<pad>", **more}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    others = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(others))
    loaded = Tokenizer.load(tmp_path)
    assert loaded is not None and loaded.apply_chat_template(MESSAGES) == expected
    other = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert other.apply_chat_template(MESSAGES, tokenize=False) == expected


@pytest.mark.parametrize(
    "declared",
    [
        {"257": {"content": "[new]", "special": True}, "258": {"content": "new too"}},
        {"400": {"content": "[far]", "special": True}, "30": {"content": "[near]"}},
        {"98": {"content": "b", "special": True}},  # of the vocabulary, and no added token of it
        {"256": {"content": "</s>", "special": False, "lstrip": True}},  # otherwise than there
        {},
    ],
)
def test_added_tokens_of_the_config_are_added_as_in_transformers(
    tmp_path: Path, declared: Any
) -> None:
    from tests.orchestrate.fakes import save_byte_tokenizer

    transformers = pytest.importorskip("transformers")
    save_byte_tokenizer(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"added_tokens_decoder": declared}))
    loaded = Tokenizer.load(tmp_path)
    other = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "a [new] b new too[far] [near] </s>."
    ids = other.encode(text)
    assert loaded is not None and loaded.encode(text) == ids
    assert loaded.vocab_size == len(other)
    assert loaded.decode(ids) == other.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "declared", [None, 7, ["a"], {"x": {"content": "a"}}, {"7": {}}, {"7": "a"}]
)
def test_faulty_added_tokens_are_a_weight_error(tmp_path: Path, declared: Any) -> None:
    from tests.orchestrate.fakes import save_byte_tokenizer

    save_byte_tokenizer(tmp_path)
    config = {"added_tokens_decoder": declared}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightError, match=r"tokenizer_config\.json cannot be read") as caught:
        Tokenizer.load(tmp_path)
    assert "added_tokens_decoder" in caught.value.cause


def test_truncation_and_padding_of_the_file_are_not_the_models(tmp_path: Path) -> None:
    from tests.orchestrate.fakes import hf_byte_tokenizer

    saved = hf_byte_tokenizer()
    saved.enable_truncation(4)
    saved.enable_padding(length=16)
    saved.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded is not None
    assert [loaded.encode(text) for text in ("a", "abcdefg")] == [[*b"a"], [*b"abcdefg"]]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_corrupt_tokenizer_file_is_a_weight_error(tmp_path: Path, name: str) -> None:
    from tests.orchestrate.fakes import save_byte_tokenizer

    save_byte_tokenizer(tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(WeightError, match=name):
        Tokenizer.load(tmp_path)


def test_a_reply_at_the_token_limit_says_that_it_was_cut(
    use_model: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_model(says("0123456789"))
    type_lines(monkeypatch, "a")
    assert run_cli(["chat", "m", "--max-tokens", "4"]) == 0
    assert "[cut after 4 tokens; --max-tokens allows more]" in capsys.readouterr().err
