"""`flexq-ft eval kl MODEL --text FILE --scheme S`: how far a scheme's logits are from FP16's."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import rich_click as click
from numpy.typing import NDArray

from flexq_ft.orchestrate import world
from flexq_ft.orchestrate.api import LLM
from flexq_ft.orchestrate.cli.console import common_options, console
from flexq_ft.orchestrate.cli.eval_options import WindowedText, text_options, window_config
from flexq_ft.orchestrate.cli.load import find_scored, load_scorer
from flexq_ft.orchestrate.cli.options import SCHEME_TABLE, scored_model_options
from flexq_ft.orchestrate.cli.progress import progress
from flexq_ft.orchestrate.engine.client import refuse_linear_inputs
from flexq_ft.orchestrate.eval.divergence import Divergence
from flexq_ft.orchestrate.eval.layer_errors import TOKENS, relative_errors, table
from flexq_ft.orchestrate.eval.logit_file import LogitFile
from flexq_ft.orchestrate.eval.perplexity import TextWindows
from flexq_ft.orchestrate.eval.reference import (
    check_same_source,
    check_same_vocabulary,
    find_reference,
)
from flexq_ft.orchestrate.eval.scorer import RuntimeScorer

SCHEMA = "flexq-ft/eval-kl/1"

EPILOG = f"""\
Examples:
  flexq-ft eval kl ./llama-7b-hf --text wiki.test.raw --scheme flexq
  flexq-ft eval kl out/flexq --text wiki.test.raw --against out/fp16

The two models run one after the other, with the same --dtype and --device; the
logits of the first wait in a temporary file (TMPDIR).

{SCHEME_TABLE}
"""


@click.command("kl", epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@text_options(max_windows=16)
@click.option(
    "--against",
    default="fp16",
    metavar="fp16|bf16|fp32|FOLDER",
    panel="Text",
    help="The reference: MODEL in this scheme, or a folder of the same checkpoint.",
)
@click.option(
    "--layers",
    is_flag=True,
    panel="Text",
    help="Also the error of each linear's input, over the first 256 tokens; with --tp 1.",
)
@scored_model_options
@common_options
def command(model: Path, against: str, **options: Any) -> int:
    """KL divergence of MODEL's logits from those of the float model, and top-1 agreement.

    In nats per token, KL(reference || MODEL), over every position of the windows but the last.
    """  # fmt: skip
    world.join(options["tp"])
    if options["layers"]:
        refuse_linear_inputs(options["tp"])
    reference, scheme = find_reference(model, against)
    text = WindowedText.load(options)
    tokens = text.longest_window
    changed = {"scheme": scheme, "int8_mode": None, "policy": None, "lm_head": None}
    float_options = {**options, **changed}
    if scheme is None:
        folders = [find_scored(model, options), find_scored(reference, float_options)]
        check_same_source(*(found.folder for found in folders))
    with load_scorer(reference, float_options, tokens=tokens) as llm:
        windows = text.cut(RuntimeScorer(llm))
        kept = _keep_logits(llm, windows)
        inputs = _linear_inputs(llm, windows) if options["layers"] else None
        reference_info = llm.info
    with kept, load_scorer(model, options, tokens=tokens) as llm:
        check_same_vocabulary(llm.info, reference_info)
        divergence = _diverge(llm, windows, kept)
        layers = inputs and relative_errors(inputs, _linear_inputs(llm, windows))
        config = {**window_config(model, options), "against": against, **asdict(llm.info)}
    _show(
        {
            **divergence.to_json(),
            **windows.to_json(),
            "text": text.name,
            "description": windows.describe(),
            "reference": asdict(reference_info),
            "layers": layers,
        },
        config=config,
    )
    return 0


def _keep_logits(llm: LLM, windows: TextWindows) -> LogitFile:
    count = len(windows.windows)
    kept = LogitFile(windows=count, tokens=windows.window, vocab=llm.info.vocab_size)
    scorer = RuntimeScorer(llm)
    with progress(f"logits of {llm.info.scheme}", count) as bar:
        for window in windows.windows:
            kept.write(scorer.logits(window.tolist()))
            bar.advance(1)
    return kept


def _linear_inputs(llm: LLM, windows: TextWindows) -> dict[str, NDArray[np.float32]]:
    return llm.linear_inputs(windows.windows[0, :TOKENS].tolist())


def _diverge(llm: LLM, windows: TextWindows, kept: LogitFile) -> Divergence:
    divergence = Divergence()
    scorer = RuntimeScorer(llm)
    with progress("divergence", len(windows.windows)) as bar:
        for window in windows.windows:
            ids = window.tolist()
            divergence.add(ids, kept.read(), scorer.logits(ids))
            bar.advance(1)
    return divergence


def _show(result: dict[str, Any], *, config: dict[str, Any]) -> None:
    kl, agreement, reference = result["kl"], result["top1_agreement"], result["reference"]
    ratio = result["perplexity"] / result["reference_perplexity"]
    lines = [
        f"KL divergence {_with_error(kl, '.6f')} nats per token; "
        f"p50 {kl['p50']:.6f}, p99 {kl['p99']:.6f}, max {kl['max']:.4f}",
        f"top-1 agreement {_with_error(agreement, '.2%')}",
        f"perplexity {result['perplexity']:.4f}, {ratio:.5f} times the reference's",
        f"of {result['positions']:,} positions, against {reference['scheme']} in "
        f"{reference['dtype']}; {result['description']}",
    ]
    if not console.json_mode:
        for line in lines:
            console.out(line)
        if result["layers"]:
            console.show(table(result["layers"]))
    console.emit(SCHEMA, config=config, results=result, markdown="\n\n".join(lines) + "\n")


def _with_error(value: dict[str, Any], form: str) -> str:
    if value["standard_error"] is None:
        return f"{value['mean']:{form}} (one window: no standard error)"
    return f"{value['mean']:{form}} (standard error {value['standard_error']:{form}})"
