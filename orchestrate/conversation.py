"""A chat's messages, kept short enough for the context."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.outputs import RequestOutput, StreamPiece
from flexq_ft.orchestrate.tokenizer import Tokenizer

Message = dict[str, str]


def reply(pieces: Generator[StreamPiece, None, None]) -> Generator[StreamPiece, None, None]:
    """Pieces that follow a chat template, without what some tokenizers put between the template's
    end and a word: blanks, which are no part of the reply. Closing it closes them."""
    begun = False
    with closing(pieces):
        for piece in pieces:
            text = piece.text if begun else piece.text.lstrip(" ")
            begun = begun or bool(text)
            yield replace(piece, text=text, output=piece.output and _without_blank(piece.output))


def _without_blank(output: RequestOutput) -> RequestOutput:
    texts = [None if one.text is None else one.text.lstrip(" ") for one in output.outputs]
    outputs = [replace(one, text=text) for one, text in zip(output.outputs, texts, strict=True)]
    return replace(output, outputs=outputs)


@dataclass
class Conversation:
    """Turns after an optional system message."""

    tokenizer: Tokenizer
    max_len: int
    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """As the template takes them."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        return head + self.turns

    def ask(self, text: str, *, reply_tokens: int) -> tuple[list[int], int]:
        """Add the user's message. Returns the prompt's ids and how many old messages were dropped
        (oldest first, question and answer together) to leave room for the reply.

        The last message alone may leave less room; ConfigError, and the message is taken back, if
        it leaves none.
        """
        self.turns.append({"role": "user", "content": text})
        dropped = 0
        try:
            ids = self.tokenizer.encode_chat(self.messages())
            while len(ids) + reply_tokens > self.max_len and len(self.turns) > 1:
                dropped += self._drop_oldest()
                ids = self.tokenizer.encode_chat(self.messages())
        except ConfigError:
            self.turns.pop()
            raise
        if len(ids) >= self.max_len:
            self.turns.pop()
            raise ConfigError(
                f"the message has {len(ids):,} tokens and does not fit in {self.max_len:,}.",
                hint="a shorter message, or a larger --max-len",
            )
        return ids, dropped

    def answer(self, text: str) -> None:
        """Add the assistant's reply."""
        self.turns.append({"role": "assistant", "content": text})

    def reset(self) -> None:
        """Forget all but the system message."""
        self.turns.clear()

    def _drop_oldest(self) -> int:
        """A question and its answer: templates want the roles in turn."""
        del self.turns[:2]
        return 2
