"""`flexq-ft eval tasks MODEL`: zero-shot tasks by lm-eval, on the engine that serves the model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import rich_click as click
from rich.table import Table

from flexq_ft.orchestrate import world
from flexq_ft.orchestrate.cli.console import common_options, console
from flexq_ft.orchestrate.cli.load import load_scorer
from flexq_ft.orchestrate.cli.options import SCHEME_TABLE, SIZE, scored_model_options
from flexq_ft.orchestrate.cli.progress import progress
from flexq_ft.orchestrate.cli.simulation_options import (
    check_simulation,
    load_simulation,
    simulation_options,
)
from flexq_ft.orchestrate.eval.harness import PAPER_TASKS, load_tasks, run_tasks
from flexq_ft.orchestrate.eval.scorer import RuntimeScorer

SCHEMA = "flexq-ft/eval-tasks/1"

EPILOG = f"""\
Examples:
  flexq-ft eval tasks ./llama-7b-hf --scheme flexq
  flexq-ft eval tasks out/llama-7b --tasks piqa,arc_easy --data-dir data

--data-dir holds a folder for each task, as `datasets` saves them to disk: piqa,
ARC-Easy, ARC-Challenge, boolq, hellaswag, winogrande_xl; else lm-eval's names.

{SCHEME_TABLE}
"""


@click.command("tasks", epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--tasks",
    default=",".join(PAPER_TASKS),
    metavar="LIST",
    panel="Tasks",
    help="Of lm-eval's tasks.",
)
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    panel="Tasks",
    help="Local copies of the tasks' data.  [default: as lm-eval finds them]",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    panel="Tasks",
    help="Only the first N documents of each task.",
)
@click.option(
    "--num-fewshot",
    type=click.IntRange(min=0),
    metavar="N",
    panel="Tasks",
    help="Solved examples before each question.  [default: the task's, 0 for most]",
)
@click.option(
    "--max-len",
    type=SIZE,
    default=2048,
    metavar="N",
    panel="Tasks",
    help="Longest question + answer in tokens; longer ones lose their beginning.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=8,
    metavar="N",
    panel="Parallel",
    help="Texts that are scored or generated together.",
)
@simulation_options
@scored_model_options
@common_options
def command(model: Path, **options: Any) -> int:
    """Accuracy of MODEL on zero-shot tasks, by lm-eval: those of FlexQ's paper, or any others."""
    check_simulation(options)
    world.join(options["tp"])
    names = [name.strip() for name in options["tasks"].split(",")]
    shots = options["num_fewshot"]
    tasks = load_tasks(names, data_dir=options["data_dir"], num_fewshot=shots)
    from flexq_ft.orchestrate.eval.harness_model import Harness, HarnessModel

    def rows(subject: HarnessModel) -> list[dict[str, Any]]:
        harness = Harness(subject, max_len=options["max_len"], progress=progress)
        return run_tasks(harness, tasks, num_fewshot=shots, limit=options["limit"])

    config = {
        "model": str(model),
        "data_dir": options["data_dir"] and str(options["data_dir"]),
        **{name: options[name] for name in ("tasks", "limit", "num_fewshot", "max_len")},
    }
    if options["simulate"]:
        simulated = load_simulation(model, options)
        result = rows(simulated)
        config |= simulated.info.to_json()
    else:
        batch, tokens = options["max_batch"], options["max_len"]
        with load_scorer(model, options, tokens=tokens, max_batch=batch) as llm:
            result = rows(RuntimeScorer(llm))
            config |= {**asdict(llm.info), "simulation": None}
    _show(result, config=config)
    return 0


def _show(rows: list[dict[str, Any]], *, config: dict[str, Any]) -> None:
    columns = ("task", "split", "examples", "shots", "metric", "value", "standard error")
    cells = [
        (
            row["task"],
            row["split"],
            f"{row['examples']:,}",
            str(row["num_fewshot"]),
            metric,
            f"{value['value']:.4f}",
            "" if value["standard_error"] is None else f"{value['standard_error']:.4f}",
        )
        for row in rows
        for metric, value in row["metrics"].items()
    ]
    if not console.json_mode:
        table = Table(title=f"Tasks of lm-eval, {config['model']}")
        for column in columns:
            table.add_column(column, justify="left" if column in ("task", "metric") else "right")
        for line in cells:
            table.add_row(*line)
        console.show(table)
    markdown = [" | ".join(columns), " | ".join(":--" for _ in columns)]
    markdown += [" | ".join(line) for line in cells]
    console.emit(
        SCHEMA,
        config=config,
        results=rows,
        markdown="".join(f"| {line} |\n" for line in markdown),
    )
