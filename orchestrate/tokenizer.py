"""Texts to ids and back: tokenizer.json through the `tokenizers` library, chat templates in a
sandbox, and a detokeniser that gives whole UTF-8 characters as tokens come.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexq_ft.errors import ConfigError, WeightError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer

_REPLACEMENT = "\ufffd"
_MEND = "mend it, in chat_template.jinja or tokenizer_config.json of the model folder"
_CONTEXT = 8  # tokens of a prompt, so that some are not special ones, which have no text


class Tokenizer:
    """The tokenizer files of one model folder. `Tokenizer.load` gives None where there are none."""

    def __init__(
        self, tokenizer: HfTokenizer, config: Mapping[str, Any], chat_template: str | None
    ):
        self._tokenizer = tokenizer
        self._config = config
        self._chat_template = chat_template

    @classmethod
    def load(cls, folder: Path) -> Tokenizer | None:
        """Raises WeightError if the files are there but cannot be read."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            return None
        from tokenizers import Tokenizer as HfTokenizer

        from flexq_ft.converter.added_tokens import add_declared_tokens

        try:
            tokenizer = HfTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise _unreadable(path, error) from error
        # Left there by a training on short texts, perhaps; transformers undoes them too.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config_path = folder / "tokenizer_config.json"
        config = _read_config(config_path)
        try:
            add_declared_tokens(tokenizer, config)
        except (TypeError, ValueError, LookupError) as error:
            raise _unreadable(config_path, f"added_tokens_decoder: {error!r}") from error
        # Older files have their special tokens apart, and then those count, as in transformers.
        if "added_tokens_decoder" not in config:
            config |= _read_config(folder / "special_tokens_map.json")
        return cls(tokenizer, config, _find_template(folder, config))

    @property
    def vocab_size(self) -> int:
        """Ids that the tokenizer knows, added ones included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    def special_text(self, name: str) -> str | None:
        """The text of `bos_token`, `eos_token`, … as the tokenizer's files have it."""
        return self._special_tokens()[name] or None

    def special_id(self, name: str) -> int | None:
        """Its id; None where the tokenizer has none."""
        text = self.special_text(name)
        found = None if text is None else self._tokenizer.token_to_id(text)
        return None if found is None else int(found)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Special tokens as the model's own post-processor adds them (BOS, for most).

        Raises ConfigError for a text that is no Unicode, as half of a surrogate pair is, or a byte
        that was read with errors="surrogateescape".
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                "the text is not Unicode.",
                cause=f"character {error.start} is {text[error.start]!r}: half of a pair, or a byte"
                " that is no UTF-8.",
                hint="UTF-8, or in JSON both halves",
            ) from error
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens are left out; bytes that are no UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation as the model was trained to see it, open for the assistant's reply.

        Raises ConfigError if there is no template, or the template refuses these messages.
        """
        if self._chat_template is None:
            raise ConfigError(
                "this model has no chat template.",
                cause="neither chat_template.jinja nor tokenizer_config.json holds one.",
                hint="flexq-ft run MODEL PROMPT  (raw text), or use an instruction-tuned model",
            )
        import jinja2

        try:
            text = _jinja_template(self._chat_template).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._special_tokens(),
            )
        except jinja2.TemplateSyntaxError as error:
            raise WeightError(
                "the model's chat template has a syntax error.",
                cause=f"line {error.lineno}: {error.message}",
                hint=_MEND,
            ) from error
        except _RefusedError as error:
            raise ConfigError(
                "the model's chat template refused the conversation.",
                cause=str(error),
                hint="some templates take no system message, or want user and assistant in turn",
            ) from error
        except Exception as error:  # it is a program, and any of its operations may fail
            raise ConfigError(
                "the model's chat template failed.",
                cause=f"{type(error).__name__}: {error}",
                hint=_MEND,
            ) from error
        return str(text)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of the conversation; the template itself holds the special tokens."""
        return self.encode(self.apply_chat_template(messages), add_special_tokens=False)

    def _special_tokens(self) -> dict[str, str]:
        tokens = {}
        for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = self._config.get(name)
            if isinstance(value, Mapping):
                value = value.get("content")
            tokens[name] = value if isinstance(value, str) else ""
        return tokens


def why_no_tokenizer(folder: str | Path) -> str:
    """The cause where Tokenizer.load gives None: what the folder lacks, and what it has instead."""
    from flexq_ft.converter.source.base import SLOW_TOKENIZER_FILES

    lack = f"{folder} holds no tokenizer.json"
    others = [name for name in SLOW_TOKENIZER_FILES if (Path(folder) / name).is_file()]
    if not others:
        return f"{lack}."
    return (
        f"{lack}, but {others[0]}, of which transformers makes one beside the checkpoint:"
        " AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(CHECKPOINT)."
    )


class Detokenizer:
    """Tokens in, text out, in whole characters.

    A token's text depends on its neighbours (spaces, bytes of one character), so each step decodes
    a short window twice, without and with the new tokens, and gives what was added. The first
    window begins in the prompt: LLaMA's tokenizer leaves the blank out of a text's first token.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-_CONTEXT:])
        if tokenizer.decode(self._ids).endswith(_REPLACEMENT):  # it ends within a character
            self._ids = []
        self._prefix = 0  # the window starts here …
        self._read = len(self._ids)  # … and its text up to here has been given

    def push(self, token: int) -> str:
        """The text that this token completes; often empty within a character."""
        self._ids.append(token)
        text = self._added()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return text

    def flush(self) -> str:
        """What is left at the end: an unfinished character, as U+FFFD."""
        text = self._added()
        self._prefix = self._read = len(self._ids)
        return text

    def _added(self) -> str:
        before = self._tokenizer.decode(self._ids[self._prefix : self._read])
        after = self._tokenizer.decode(self._ids[self._prefix :])
        return after[len(before) :]


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return config if isinstance(config, dict) else {}


def _unreadable(path: Path, error: Exception | str) -> WeightError:
    return WeightError(f"{path} cannot be read.", cause=str(error), hint="convert the model again")


def _find_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        entries = [entry for entry in template if isinstance(entry, Mapping)]
        named = [entry.get("template") for entry in entries if entry.get("name") == "default"]
        template = named[-1] if named else None
    return template if isinstance(template, str) else None


class _RefusedError(Exception):
    """What a template says by raise_exception."""


def _jinja_template(source: str) -> Any:
    """Compiled in a sandbox: a template comes with the weights and is not trusted."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} … {% endgeneration %}: what is trained on. Here it is text as any."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise _RefusedError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return environment.from_string(source)
