"""`flexq-ft eval ppl MODEL --text FILE`: perplexity, with the protocol that makes it a number."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import rich_click as click

from flexq_ft.orchestrate import world
from flexq_ft.orchestrate.cli.console import common_options, console
from flexq_ft.orchestrate.cli.eval_options import (
    TextModel,
    WindowedText,
    text_options,
    window_config,
)
from flexq_ft.orchestrate.cli.load import load_scorer
from flexq_ft.orchestrate.cli.options import SCHEME_TABLE, scored_model_options
from flexq_ft.orchestrate.cli.progress import progress
from flexq_ft.orchestrate.cli.simulation_options import (
    check_simulation,
    load_simulation,
    simulation_options,
)
from flexq_ft.orchestrate.eval.baseline import SCHEMA, Baseline
from flexq_ft.orchestrate.eval.perplexity import Perplexity, Scorer, evaluate
from flexq_ft.orchestrate.eval.scorer import RuntimeScorer

EPILOG = f"""\
Examples:
  flexq-ft eval ppl ./llama-7b-hf --text wiki.test.raw --save fp16.json
  flexq-ft eval ppl ./llama-7b-hf --text wiki.test.raw --scheme flexq \\
    --against fp16.json
  flexq-ft eval ppl ./llama-7b-hf --text wiki.test.raw --simulate \\
    --wbits 4 --abits 8 --w-group-size 64 --symmetric

A perplexity means nothing without its protocol, which is printed beside it;
--against refuses a result of another protocol, window, text or tokenizer.

{SCHEME_TABLE}
"""


@click.command("ppl", epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@text_options()
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="RESULT.json",
    panel="Text",
    help="An earlier result on the same windows, to compare with window by window.",
)
@simulation_options
@scored_model_options
@common_options
def command(model: Path, against: Path | None, **options: Any) -> int:
    """Perplexity of MODEL on a text: exp of the mean loss of its windows.

    MODEL is a converted folder, a Hugging Face folder or a .gguf file; the last two are converted
    into a cache first. --json and --save keep the loss of every window.
    """  # fmt: skip
    check_simulation(options)
    world.join(options["tp"])
    baseline = None if against is None else Baseline.load(against)
    text = WindowedText.load(options)
    config = window_config(model, options)
    if options["simulate"]:
        simulated = load_simulation(model, options)
        console.info(
            f"{model} in torch on {simulated.info.device}: {simulated.info.form.describe()}"
        )
        result = _evaluate(simulated, text, baseline)
        config |= simulated.info.to_json()
    else:
        with load_scorer(model, options, tokens=text.longest_window) as llm:
            result = _evaluate(RuntimeScorer(llm), text, baseline)
            config |= {**asdict(llm.info), "simulation": None}
    _show(result, text.name, baseline, config=config)
    return 0


class Model(TextModel, Scorer, Protocol):
    """What has a perplexity."""


def _evaluate(model: Model, text: WindowedText, baseline: Baseline | None) -> Perplexity:
    windows = text.cut(model)
    if baseline is not None:
        baseline.check(windows)  # before what takes long
    with progress("perplexity", len(windows.windows)) as bar:
        return evaluate(model, windows, progress=lambda done, total: bar.advance(1))


def _show(
    result: Perplexity, text: str, baseline: Baseline | None, *, config: dict[str, Any]
) -> None:
    against = None if baseline is None else baseline.compare(result)
    lines = [_value(result), result.describe()]
    if against is not None:
        lines.append(_comparison(against))
    if not console.json_mode:
        for line in lines:
            console.out(line)
    console.emit(
        SCHEMA,
        config=config,
        results={**result.to_json(), "text": text, "against": against},
        markdown="\n\n".join(lines) + "\n",
    )


def _value(result: Perplexity) -> str:
    if result.confidence95 is None:
        return f"perplexity {result.perplexity:.4f} (one window: no interval)"
    low, high = result.confidence95
    return f"perplexity {result.perplexity:.4f} (95 %: {low:.4f} to {high:.4f})"


def _comparison(against: dict[str, Any]) -> str:
    text = f"{against['ratio']:.5f} times that of {against['file']}, {against['perplexity']:.4f}"
    if against["ratio_confidence95"] is None:
        return text
    low, high = against["ratio_confidence95"]
    return f"{text} (95 %, window by window: {low:.5f} to {high:.5f})"
