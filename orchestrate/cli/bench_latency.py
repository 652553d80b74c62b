"""`flexq-ft bench latency`: prefill and decode of one model in several schemes, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from flexq_ft.converter.options import DTYPES, SCHEME_NAMES
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate import world
from flexq_ft.orchestrate.bench.case import Case, plan_cases
from flexq_ft.orchestrate.cli.console import console, error_to_json, exit_code, table_options
from flexq_ft.orchestrate.cli.options import (
    NUMBERS,
    SCHEME_TABLE,
    device_option,
    lm_head_option,
    step_kernel_option,
)
from flexq_ft.orchestrate.cli.progress import ConversionProgress
from flexq_ft.orchestrate.shapes import find_shape

SCHEMA = "flexq-ft/bench-latency/1"

EPILOG = f"""\
Examples:
  flexq-ft bench latency ./llama-7b-hf --scheme fp16,w8a8,flexq --batch 1-16*2
  flexq-ft bench latency --shape llama-7b --synthetic-weights --batch 1 \\
    --prompt-tokens 15 --output-tokens 256 --save h100.json --save h100.csv

Prompts are random ids, different at every request; outputs never end early.
Each engine warms up until its last requests agree (3 to 20 of them); then the
schemes take turns, until each has cv < 2 % (5 to 30 rounds, or --repeat).
"of peak": bytes that a step must read, over its time and the read bandwidth
measured in this run.
Flags: throttled (the GPU slowed itself down), busy (others use the machine),
suspect (beyond what the machine can), unsteady (cv >= 2 %).

{SCHEME_TABLE}
"""


class SchemeListType(click.ParamType[list[str]]):
    """Scheme names, comma-separated."""

    name = "list"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        if isinstance(value, list):
            return value
        names = [name.strip() for name in str(value).split(",")]
        for name in names:
            if name not in SCHEME_NAMES:
                self.fail(f"{name!r} is not one of {', '.join(SCHEME_NAMES)}.", param, ctx)
        return list(dict.fromkeys(names))


@click.command("latency", epilog=EPILOG)
@click.argument("model", required=False)
@click.option(
    "--shape",
    metavar="NAME",
    panel="Model",
    help="Sizes of configs/models instead of MODEL: llama-7b, llama-2-70b, opt-13b, …",
)
@click.option(
    "--synthetic-weights",
    is_flag=True,
    panel="Model",
    help="Random weights: times are those of real ones, texts are not.",
)
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    panel="Model",
    help="Where models converted on the fly are kept.  [default: ~/.cache/flexq-ft]",
)
@click.option(
    "--scheme",
    type=SchemeListType(),
    metavar="LIST",
    panel="Precision",
    help="As fp16,w8a16,w8a8; measured in turns.  [default: as converted, or fp16]",
)
@click.option("--policy", metavar="NAME|FILE", panel="Precision", help="Activation bits of w6ax.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    panel="Precision",
    help="Compute type.  [default: that of the model folder]",
)
@lm_head_option
@click.option(
    "--batch",
    type=NUMBERS,
    default="1",
    metavar="LIST",
    panel="Load",
    help="Sequences at a time: 1,8 or 1-16*2.",
)
@click.option(
    "--prompt-tokens",
    type=NUMBERS,
    default="128",
    metavar="LIST",
    panel="Load",
    help="Tokens of each prompt.",
)
@click.option(
    "--output-tokens",
    type=NUMBERS,
    default="128",
    metavar="LIST",
    panel="Load",
    help="New tokens of each sequence; 1 measures the prefill alone.",
)
@click.option(
    "--prefill-chunk",
    type=click.IntRange(min=1),
    metavar="N",
    panel="Load",
    help="Most prompt tokens of one step.  [default: 512, on a GPU 2048]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, panel="Load", help="Of the prompts.")
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    metavar="N",
    panel="Measuring",
    help="Rounds.  [default: 5 to 30, until cv < 2 %]",
)
@click.option(
    "--warm-up",
    type=click.IntRange(min=1),
    default=20,
    metavar="N",
    panel="Measuring",
    help="Most requests before the first round.",
)
@click.option(
    "--profile",
    is_flag=True,
    panel="Measuring",
    help="Also the time of each node of a decode step, run op by op, beside its bytes.",
)
@click.option(
    "--peak-tflops",
    type=click.FloatRange(min=0, min_open=True),
    panel="Measuring",
    help="Of one GPU, measured elsewhere: the prefill is then held against it.",
)
@click.option(
    "--graphs/--no-graphs", default=True, panel="Measuring", help="Decode steps as CUDA graphs."
)
@click.option(
    "--tp",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    panel="Parallel",
    help="Ranks that share the model; started with mpirun unless under it already.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    panel="Parallel",
    help="Threads of each rank.  [default: cores / ranks]",
)
@device_option
@step_kernel_option
@table_options
def command(model: str | None, shape: str | None, **options: Any) -> int:
    """Time prefill and decode of MODEL, or of a --shape with synthetic weights.

    One table for all schemes, batches and lengths; --json and --save keep every sample.
    """  # fmt: skip
    world.join(options["tp"])
    groups = _plan(model, shape, options)
    from flexq_ft.orchestrate.bench.measure import Repeat
    from flexq_ft.orchestrate.bench.session import Session, Settings

    repeat, tflops = options["repeat"], options["peak_tflops"]
    settings = Settings(
        repeat=Repeat(repeat, repeat) if repeat else Repeat(),
        warm_ups=options["warm_up"],
        profile=options["profile"],
        peak_flops=tflops and 1e12 * tflops,
        cache_dir=options["cache_dir"],
    )
    failures: list[Exception] = []

    def report_error(error: Exception) -> dict[str, Any]:
        if sum(map(len, groups)) == 1:
            raise error  # nothing else to show: the error is the result
        console.error(error)
        failures.append(error)
        return error_to_json(error)

    session = Session(
        settings,
        notify=console.info,
        detail=console.detail,
        report_error=report_error,
        progress=ConversionProgress(),
    )
    rows = []
    for number, group in enumerate(groups, start=1):
        console.info(f"[{number}/{len(groups)}] {', '.join(case.label() for case in group)}")
        rows += session.measure(group)
    _show(rows, name=shape or str(model), config={"model": model, "shape": shape, **options})
    return exit_code(failures[0]) if failures else 0


def _plan(model: str | None, shape: str | None, options: dict[str, Any]) -> list[list[Case]]:
    if (model is None) == (shape is None):
        given = "neither was" if model is None else "both were"
        raise ConfigError(
            f"MODEL or --shape NAME is needed, and {given} given.",
            hint="flexq-ft bench latency OUT   or   --shape llama-7b --synthetic-weights",
        )
    if shape is not None:
        find_shape(shape)
    case = Case(
        model=str(shape or model),
        is_shape=shape is not None,
        **{
            name: options[name]
            for name in ("synthetic_weights", "policy", "dtype", "lm_head", "tp", "threads",
                         "device", "prefill_chunk", "graphs", "step_kernel", "seed")
        },
    )  # fmt: skip
    return plan_cases(
        case,
        schemes=options["scheme"] or [],
        batches=options["batch"],
        prompts=options["prompt_tokens"],
        outputs=options["output_tokens"],
    )


def _show(rows: list[dict[str, Any]], *, name: str, config: dict[str, Any]) -> None:
    from flexq_ft.orchestrate.bench import report

    title = f"Latency of {name}"
    if any(row["config"]["synthetic_weights"] for row in rows):
        title += ", synthetic weights"
    if not console.json_mode:
        console.show(report.screen_table(rows, title=title))
        for row in rows:
            if row["profile"]:
                console.show(report.profile_table(row))
    for line in report.reproduce_lines(rows):
        console.info(line)
    console.emit(
        SCHEMA,
        config={**config, "cache_dir": config["cache_dir"] and str(config["cache_dir"])},
        results=rows,
        markdown=report.markdown(rows, title=title),
        csv=report.to_csv(rows),
    )
