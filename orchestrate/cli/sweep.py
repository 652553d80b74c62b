"""`flexq-ft sweep FILE.yaml`: a matrix of cases, one table."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import rich_click as click

from flexq_ft.orchestrate.cli.console import console, table_options
from flexq_ft.orchestrate.cli.options import SCHEME_TABLE
from flexq_ft.orchestrate.devices import check_device

SCHEMA = "flexq-ft/sweep-result/1"

EPILOG = f"""\
Examples:
  flexq-ft sweep configs/sweeps/quick.yaml --dry-run
  flexq-ft sweep configs/sweeps/quick.yaml --plots --save quick.json

A finished case is not run again: a sweep that was interrupted, killed, or
stopped by --max-minutes goes on where it stopped. A case that fails is a row
with its error; the exit code is then 1, at the end.

\b
{SCHEME_TABLE}
"""


def _known_device(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else check_device(value)


@click.command("sweep", epilog=EPILOG)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for rows.jsonl and reports.  [default: sweeps/NAME of the file]",
)
@click.option("--dry-run", is_flag=True, help="List the cases and say which must fail; run none.")
@click.option("--force", is_flag=True, help="Measure finished cases again too.")
@click.option("--plots", is_flag=True, help="PNG files beside the report; needs matplotlib.")
@click.option(
    "--max-minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Start no case later than this; exit code 0, and the same command goes on.",
)
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where models converted on the fly are kept.",
)
@click.option(
    "--device",
    metavar="auto|cpu|cuda|cuda:N",
    callback=_known_device,
    help="Where cases run.  [default: device of FILE, or auto]",
)
@table_options
def command(
    file: Path,
    *,
    out: Path | None,
    dry_run: bool,
    force: bool,
    plots: bool,
    max_minutes: float | None,
    cache_dir: Path | None,
    device: str | None,
) -> int:
    """Measure a matrix of models, schemes and sizes; one table of speed, memory and quality.

    FILE is a YAML file (schema flexq-ft/sweep/1). Each case runs in its own process, once in every
    round. The result is rows.jsonl, a row a case and round with the command that repeats it, and
    report.md, report.csv and plots, made from it.
    """  # fmt: skip
    from flexq_ft.orchestrate.sweep.foresight import foreseen_failures
    from flexq_ft.orchestrate.sweep.plan import plan_cases
    from flexq_ft.orchestrate.sweep.run import SweepRun
    from flexq_ft.orchestrate.sweep.spec import load_spec

    spec = load_spec(file)
    cases = plan_cases(spec, base=file.parent, device=device)
    folder = out or Path("sweeps") / file.stem
    title = f"Sweep {file.stem}" + (", synthetic weights" if spec.synthetic_weights else "")
    run = SweepRun(cases, folder, title=title, rounds=spec.rounds, plots=plots, cache_dir=cache_dir)
    config = {"file": str(file), "out": str(folder), **spec.model_dump(mode="json", by_alias=True)}
    for line in foreseen_failures(cases):
        console.warn(line)
    pending = run.pending(force=force)
    if dry_run:
        return _list_cases(run, pending, config=config)

    if len(pending) < len(run.turns):
        unit = "cases" if spec.rounds == 1 else f"turns ({spec.rounds} rounds)"
        finished = len(run.turns) - len(pending)
        console.info(f"{finished} of {len(run.turns)} {unit} are finished already.")

    def observe(number: int, turn: Any, row: dict[str, Any] | None) -> None:
        line = f"[{number}/{run.total}] {turn.case.label()}"
        console.info(line + ("" if row is None else _outcome(row)))

    seconds = math.inf if max_minutes is None else 60 * max_minutes
    try:
        rows = run.run(force=force, seconds=seconds, observe=observe)
    except KeyboardInterrupt:
        console.info("\nfinished cases are kept: the same command goes on where it stopped")
        raise
    if run.stopped:
        console.warn(
            f"stopped after {max_minutes:g} minutes with {run.stopped} of {run.total} still to "
            "run; the same command goes on."
        )
    return _show(run, rows, config=config)


def _list_cases(run: Any, pending: list[Any], *, config: dict[str, Any]) -> int:
    from flexq_ft.orchestrate.sweep.command import reproduce_command

    waiting = Counter(turn.case.case_id for turn in pending)
    if not console.json_mode:
        for case in run.cases:
            state = "to run" if case.case_id in waiting else "finished"
            console.out(f"{case.case_id}  {state:8}  {case.label()}")
        rounds = "" if run.rounds == 1 else f", {run.rounds} rounds: {len(pending)} processes"
        console.out(f"{len(run.cases)} cases, {len(waiting)} to run{rounds}.")
    console.emit(
        SCHEMA,
        config=config,
        results=[
            {
                "case_id": case.case_id,
                "config": case.model_dump(mode="json"),
                "to_run": waiting[case.case_id] > 0,
                "command": reproduce_command(case),
            }
            for case in run.cases
        ],
    )
    return 0


def _outcome(row: dict[str, Any]) -> str:
    if row["error"] is not None:
        return f": {row['error']['kind']}: {row['error']['message']}"
    metrics, quality = row["metrics"], row["quality"] or {}
    parts = [f"prefill {metrics['prefill_tok_s']:.1f} tok/s"]
    if metrics["decode_tok_s"] is not None:
        parts.append(f"decode {metrics['decode_tok_s']:.1f} tok/s")
    if quality.get("ppl"):
        parts.append(f"perplexity {quality['ppl']['perplexity']:.3f}")
    return f": {', '.join(parts)} ({row['seconds']:.0f} s)"


def _show(run: Any, rows: list[dict[str, Any]], *, config: dict[str, Any]) -> int:
    from flexq_ft.orchestrate.sweep.csv_table import to_csv
    from flexq_ft.orchestrate.sweep.report import error_lines, markdown, screen_table

    if not console.json_mode:
        console.show(screen_table(rows, title=run.title))
    console.emit(
        SCHEMA,
        config=config,
        results=rows,
        markdown=markdown(rows, title=run.title),
        csv=to_csv(rows),
    )
    for row in rows:
        if row["quality"] and row["quality"]["ppl"]:
            console.info(row["quality"]["ppl"]["description"])
            break
    console.info(f"report: {run.report_path}   rows, with commands: {run.store.path}")
    if others := len(run.other_rows()):
        console.info(f"the report also has {others} cases of this folder that FILE does not have")
    failed = error_lines(rows)
    for line in failed:
        console.info(line)
    return 1 if failed else 0
