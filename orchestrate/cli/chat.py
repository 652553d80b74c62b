"""`flexq-ft chat MODEL`: a conversation, with the model's own chat template."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import rich_click as click

from flexq_ft.errors import ConfigError, FlexQFtError
from flexq_ft.orchestrate import world
from flexq_ft.orchestrate.api import LLM
from flexq_ft.orchestrate.cli.console import common_options, console, write_atomically
from flexq_ft.orchestrate.cli.interrupts import note_handled
from flexq_ft.orchestrate.cli.load import load_model, resolved_config, sampling_from
from flexq_ft.orchestrate.cli.options import SCHEME_TABLE, model_options, sampling_options
from flexq_ft.orchestrate.conversation import Conversation, reply
from flexq_ft.orchestrate.outputs import RequestOutput
from flexq_ft.orchestrate.sampling import SamplingParams

SCHEMA = "flexq-ft/chat/1"

COMMANDS = """\
/reset        forget the conversation (the system message stays)
/system TEXT  set the system message and start again; without TEXT: none
/save FILE    write the messages as JSON
/stats        tokens and speed of the last reply
/help         this
Ctrl-C stops a reply, Ctrl-D leaves."""

EPILOG = f"""\
Example:
  flexq-ft chat model.gguf --scheme flexq --system "Answer in one sentence."

In the conversation:
{COMMANDS}

{SCHEME_TABLE}
"""


# A reply is seldom as short as a continuation that is asked for.
@click.command("chat", epilog=EPILOG, context_settings={"default_map": {"max_tokens": 1024}})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--system", metavar="TEXT", panel="Prompt", help="The system message.")
@sampling_options
@model_options
@common_options
def command(model: Path, system: str | None, **options: Any) -> None:
    """Talk to an instruction-tuned model.

    The oldest turns are dropped, and this is said, when the context is full.
    """
    world.join(options["tp"])
    params = sampling_from(options)
    with load_model(model, options) as llm:
        if llm.tokenizer is None or not llm.tokenizer.has_chat_template:
            raise ConfigError(
                "this model has no chat template.",
                cause=f"{llm.info.model_dir} holds none; base models are not trained to chat.",
                hint=f"flexq-ft run {model} PROMPT",
            )
        chat = Chat(llm, Conversation(llm.tokenizer, llm.info.max_len, system), params)
        console.info("Ctrl-C stops a reply, Ctrl-D leaves, /help lists commands.")
        chat.loop()
        messages = chat.conversation.messages()
        console.emit(
            SCHEMA,
            config=resolved_config(llm, model, params),
            results=[{"messages": messages, "replies": [r.to_json() for r in chat.done]}],
            markdown="".join(f"**{m['role']}**: {m['content']}\n\n" for m in messages),
        )


class Chat:
    """Reads lines, answers them, obeys the commands."""

    def __init__(self, llm: LLM, conversation: Conversation, params: SamplingParams) -> None:
        self.conversation = conversation
        self.done: list[RequestOutput] = []
        self._llm = llm
        self._params = params
        self._stopped = ""  # what is known of the last reply, if Ctrl-C ended it

    def loop(self) -> None:
        """Until the end of input. Errors of one message are reported, and the chat goes on."""
        while (line := _read_line()) is not None:
            text = line.strip()
            try:
                if text.startswith("/"):
                    self._obey(text)
                elif text:
                    self._reply(text)
            except ConfigError as error:
                console.error(error)

    def _reply(self, text: str) -> None:
        limit = self._params.max_tokens
        # A quarter of the context, at most, is kept free: a long limit is no wish to forget.
        room = min(limit, self._llm.info.max_len // 4)
        ids, dropped = self.conversation.ask(text, reply_tokens=room)
        if dropped:
            console.info(f"[the context is full: the {dropped} oldest messages were dropped]")
        # New draws at each turn, all of them given by the one seed.
        seed = self._params.seed
        params = dataclasses.replace(
            self._params,
            max_tokens=min(limit, self._llm.info.max_len - len(ids)),
            min_tokens=min(self._params.min_tokens, self._llm.info.max_len - len(ids)),
            seed=None if seed is None else seed + len(self.done),
        )
        said: list[str] = []
        try:
            self._stream(ids, params, said)
        except FlexQFtError:
            self.conversation.turns.pop()
            raise
        self.conversation.answer("".join(said))

    def _stream(self, ids: list[int], params: SamplingParams, said: list[str]) -> None:
        tokens, begin, cut = 0, time.perf_counter(), False
        self._stopped = ""
        with (
            _interrupt_flag() as interrupted,
            closing(reply(self._llm.stream(ids, params))) as pieces,
        ):
            for piece in pieces:
                tokens += len(piece.token_ids)
                said.append(piece.text)
                if not console.json_mode:
                    console.out(piece.text, end="")
                if piece.output is not None:
                    self.done.append(piece.output)
                    cut = piece.output.outputs[0].finish_reason == "length"
                elif interrupted:
                    break
        if not console.json_mode:
            console.out("")
        if interrupted and not cut:
            rate = tokens / (time.perf_counter() - begin)
            self._stopped = f"[stopped after {tokens:,} tokens, {rate:,.1f} tok/s with its prefill]"
            console.info("[stopped]")
        elif cut:
            console.info(f"[cut after {tokens:,} tokens; --max-tokens allows more]")

    def _obey(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/reset":
            self.conversation.reset()
            console.info("[forgotten]")
        elif name == "/system":
            self.conversation.system = argument or None
            self.conversation.reset()
            console.info("[a new conversation]")
        elif name == "/save":
            self._save(argument)
        elif name == "/stats":
            console.info(self._stats())
        elif name == "/help":
            console.info(COMMANDS)
        else:
            raise ConfigError(f"{name} is no command.", hint="/help")

    def _save(self, argument: str) -> None:
        if not argument:
            raise ConfigError("/save needs a file name.", hint="/save chat.json")
        text = json.dumps(self.conversation.messages(), indent=2, ensure_ascii=False) + "\n"
        write_atomically(Path(argument), text)
        console.info(f"[{len(self.conversation.messages())} messages written to {argument}]")

    def _stats(self) -> str:
        if self._stopped:
            return self._stopped
        if not self.done:
            return "[no reply yet]"
        last, total = self.done[-1].metrics, sum(r.metrics.output_tokens for r in self.done)
        decode = "" if last.decode_tok_s is None else f", decode {last.decode_tok_s:,.1f} tok/s"
        return (
            f"[context {last.prompt_tokens + last.output_tokens:,} of "
            f"{self._llm.info.max_len:,} tokens; prefill {last.prefill_tok_s:,.1f} tok/s{decode}; "
            f"{total:,} tokens in {len(self.done)} replies; "
            f"peak memory {last.peak_memory_bytes / 1e6:,.0f} MB]"
        )


def _read_line() -> str | None:
    """One line of input; None at its end. Ctrl-C gives an empty one."""
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401  line editing for input()

        console.prompt("> ")
    try:
        return input() if terminal else (sys.stdin.readline() or None)
    except EOFError:
        console.info("")
        return None
    except KeyboardInterrupt:
        console.info("\n(Ctrl-D leaves)")
        return ""


@contextmanager
def _interrupt_flag() -> Iterator[list[bool]]:
    """While open, Ctrl-C fills the list instead of raising: a step is never cut in half."""
    pressed: list[bool] = []

    def note(number: int, frame: FrameType | None) -> None:
        note_handled()
        pressed.append(True)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
