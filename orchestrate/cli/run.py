"""`flexq-ft run MODEL PROMPT`: text or ids in, text or ids out; one prompt or a file of rows."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import rich_click as click

from flexq_ft.errors import ConfigError, FlexQFtError
from flexq_ft.orchestrate import world
from flexq_ft.orchestrate.api import LLM
from flexq_ft.orchestrate.cli.console import common_options, console
from flexq_ft.orchestrate.cli.load import load_model, resolved_config, sampling_from
from flexq_ft.orchestrate.cli.options import SCHEME_TABLE, model_options, sampling_options
from flexq_ft.orchestrate.cli.streams import json_for_stdout
from flexq_ft.orchestrate.conversation import reply
from flexq_ft.orchestrate.outputs import RequestOutput, StreamPiece
from flexq_ft.orchestrate.sampling import FIELDS, SamplingParams
from flexq_ft.orchestrate.suggest import refuse_unknown
from flexq_ft.orchestrate.tokenizer import why_no_tokenizer

SCHEMA = "flexq-ft/run/1"

EPILOG = f"""\
Examples:
  flexq-ft run out/llama-7b "The sky is" --max-tokens 32
  flexq-ft run ./llama-7b-hf --prompt-file story.txt --scheme flexq --tp 2
  flexq-ft run model.gguf --ids 1,450,7 --json
  flexq-ft run out/llama-7b --jsonl prompts.jsonl > answers.jsonl

A PROMPT that begins with a dash comes last, after -- alone.
A row of --jsonl: {{"id": …, "prompt": "…" or "prompt_token_ids": […], and any
sampling field}}. Rows come out in their order; one that fails carries its error.

{SCHEME_TABLE}
"""


@dataclass(frozen=True)
class Row:
    """One line of --jsonl, or what is wrong with it."""

    id: Any
    prompt: str | list[int] = ""
    params: SamplingParams = field(default_factory=SamplingParams)
    error: FlexQFtError | None = None


@click.command("run", epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option(
    "--prompt-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    panel="Prompt",
    help="The prompt is the content of this file, without its last line end.",
)
@click.option(
    "--jsonl",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    panel="Prompt",
    help="Prompts from a file of JSON lines (- for stdin).",
)
@click.option(
    "--ids",
    is_flag=True,
    panel="Prompt",
    help="PROMPT is comma-separated token ids, and ids are printed.",
)
@click.option(
    "--chat-template",
    is_flag=True,
    panel="Prompt",
    help="Wrap the prompt as a user's message, as the model was trained to see it.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=8,
    metavar="N",
    panel="Parallel",
    help="Rows of --jsonl that are decoded together.",
)
@sampling_options
@click.option(
    "--logprobs",
    is_flag=True,
    panel="Sampling",
    help="Log-probabilities of the output's tokens (in --json, --save and --jsonl).",
)
@model_options
@common_options
def command(model: Path, prompt: str | None, **options: Any) -> int:
    """Generate text from PROMPT (`-`: stdin, without its last line end), a file, or JSON lines.

    MODEL is a converted folder, a Hugging Face folder or a .gguf file; the last two are converted
    into a cache first.
    """  # fmt: skip
    world.join(options["tp"])  # under mpirun only rank 0 goes on, and reads stdin
    params = sampling_from(options)
    if options["jsonl"] is not None:
        _refuse_other_prompts(prompt, options)
        rows = list(_read_rows(options["jsonl"], params))
        with load_model(model, options, max_batch=options["max_batch"]) as llm:
            return _run_rows(llm, rows, resolved_config(llm, model, params))
    if options["ids"] and options["chat_template"]:
        raise click.UsageError(
            "--chat-template takes a text, and --ids gives none.", click.get_current_context()
        )
    if options["logprobs"] and not (console.json_mode or console.save):
        raise click.UsageError(
            "--logprobs are shown with --json, --save or --jsonl.", click.get_current_context()
        )
    text = _read_prompt(prompt, options["prompt_file"])
    ids = _parse_ids(text) if options["ids"] else None
    with load_model(model, options) as llm:
        _refuse_without_tokenizer(llm, options)
        if options["chat_template"]:
            pieces = reply(llm.stream(_templated(llm, text), params))
        else:
            pieces = llm.stream(text if ids is None else ids, params)
        output = _run_one(pieces, show_ids=options["ids"])
        console.emit(
            SCHEMA,
            config=resolved_config(llm, model, params),
            results=[output.to_json()],
            markdown=_markdown(output),
        )
    return 0


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        given = "none was given" if prompt is None else "both PROMPT and --prompt-file were given"
        raise click.UsageError(
            f"One of PROMPT, --prompt-file and --jsonl is needed; {given}.",
            click.get_current_context(),
        )
    if file is not None:
        return _without_line_end(_decoded(file.read_bytes(), str(file)))
    if prompt == "-":
        return _without_line_end(_decoded(sys.stdin.buffer.read(), "stdin"))
    assert prompt is not None
    return _decoded(prompt.encode(errors="surrogateescape"), "PROMPT")


def _without_line_end(text: str) -> str:
    """The one that editors and echo put behind a text, which is no part of the prompt."""
    return re.sub(r"\r?\n\Z", "", text)


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")  # the mark that some editors begin a file with is no text
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name} is not UTF-8 text.", cause=str(error), hint="iconv -t UTF-8"
        ) from error


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is not a list of token ids.",
            cause="--ids takes numbers with commas between.",
            hint="flexq-ft run MODEL 1,450,7 --ids",
        ) from error


def _templated(llm: LLM, text: str) -> list[int]:
    if llm.tokenizer is None:
        raise ConfigError(
            "--chat-template needs a tokenizer, and this model has none.", hint="--ids 1,450,7"
        )
    return llm.tokenizer.encode_chat([{"role": "user", "content": text}])


def _refuse_without_tokenizer(llm: LLM, options: dict[str, Any]) -> None:
    if llm.tokenizer is None and not options["ids"] and not console.json_mode:
        raise ConfigError(
            "this model has no tokenizer, so it gives no text.",
            cause=why_no_tokenizer(llm.info.model_dir),
            hint="--ids, with token ids as the prompt",
        )


def _run_one(pieces: Iterator[StreamPiece], *, show_ids: bool) -> RequestOutput:
    """Streams to stdout unless under --json."""
    output: RequestOutput | None = None
    separator = ""
    for piece in pieces:
        if not console.json_mode:
            if show_ids:
                ids = ",".join(str(token) for token in piece.token_ids)
                console.out(separator + ids if ids else "", end="")
                separator = ","
            elif piece.text:
                console.out(piece.text, end="")
        output = piece.output
    assert output is not None
    if not console.json_mode:
        console.out("")
        _say_speed(output)
    return output


def _say_speed(output: RequestOutput) -> None:
    metrics = output.metrics
    decode = "" if metrics.decode_tok_s is None else f", decode {metrics.decode_tok_s:,.1f} tok/s"
    console.info(
        f"[{metrics.prompt_tokens} + {metrics.output_tokens} tokens, "
        f"{output.outputs[0].finish_reason}; prefill {metrics.prefill_tok_s:,.1f} tok/s{decode}; "
        f"seed {output.seed}]"
    )


def _refuse_other_prompts(prompt: str | None, options: dict[str, Any]) -> None:
    given = [f"--{name.replace('_', '-')}" for name in _ONE_PROMPT if options[name]]
    if prompt is not None:
        given.insert(0, "PROMPT")
    if given:
        raise click.UsageError(
            f"--jsonl brings its own prompts; {', '.join(given)} cannot be given with it.",
            click.get_current_context(),
        )


_ONE_PROMPT = ("prompt_file", "ids", "chat_template")


def _read_rows(path: Path, defaults: SamplingParams) -> Iterator[Row]:
    data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    # Not splitlines(): JSON texts may hold its other line ends, such as U+2028, as they are.
    for number, line in enumerate(_decoded(data, str(path)).split("\n"), start=1):
        if line.strip():
            yield _parse_row(line, f"{path}:{number}", defaults)


def _parse_row(line: str, place: str, defaults: SamplingParams) -> Row:
    row_id = None
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ConfigError(f"{place}: a row must be a JSON object.", hint='{"prompt": "…"}')
        row_id = row.pop("id", None)
        prompt = _row_prompt(row, place)
        refuse_unknown(f"field in {place}", row, FIELDS)
        return Row(row_id, prompt, replace(defaults, **row))
    except (ValueError, RecursionError) as error:
        fault = ConfigError(f"{place} is not JSON.", cause=str(error), hint='{"prompt": "…"}')
        return Row(row_id, error=fault)
    except ConfigError as error:
        return Row(row_id, error=error)


def _row_prompt(row: dict[str, Any], place: str) -> str | list[int]:
    text, ids = row.pop("prompt", None), row.pop("prompt_token_ids", None)
    if (text is None) == (ids is None):
        raise ConfigError(
            f"{place}: a row needs one of prompt and prompt_token_ids.", hint='{"prompt": "…"}'
        )
    if isinstance(text, str):
        return text
    if isinstance(ids, list) and all(type(token) is int for token in ids):
        return ids
    raise ConfigError(
        f"{place}: prompt must be a text, prompt_token_ids a list of whole numbers.",
        hint='{"prompt": "…"} or {"prompt_token_ids": [1, 450]}',
    )


def _run_rows(llm: LLM, rows: Sequence[Row], config: dict[str, Any]) -> int:
    good = [row for row in rows if row.error is None]
    document, failed = [], 0
    with closing(llm.generate_each([r.prompt for r in good], [r.params for r in good])) as results:
        for row in rows:
            result = row.error or next(results)
            entry: dict[str, Any] = {} if row.id is None else {"id": row.id}
            if isinstance(result, FlexQFtError):
                failed += 1
                entry["error"] = result.to_json()
            else:
                entry |= result.to_json()
            document.append(entry)
            if not console.json_mode:
                console.out(json_for_stdout(entry))
    if failed:
        console.warn(f"{failed} of {len(rows)} rows failed; each carries its error.")
    console.emit(SCHEMA, config=config, results=document, markdown=_rows_markdown(document))
    return 1 if failed else 0


def _markdown(output: RequestOutput) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in asdict(output.metrics).items())
    text = output.outputs[0].text
    body = text if text is not None else str(output.outputs[0].token_ids)
    return f"{body}\n\n| metric | value |\n|---|---|\n{rows}\n"


def _rows_markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| row | id | finish | tokens | text |", "|---|---|---|---|---|"]
    for number, row in enumerate(rows):
        error = row.get("error")
        text = error["message"] if error else row["text"]
        cell = json.dumps(text, ensure_ascii=False).replace("|", "\\|")
        finish = "error" if error else row["finish_reason"]
        tokens = "" if error else len(row["token_ids"])
        lines.append(f"| {number} | {row.get('id', '')} | {finish} | {tokens} | {cell} |")
    return "\n".join(lines) + "\n"
