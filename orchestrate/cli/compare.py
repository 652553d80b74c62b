"""`flexq-ft compare A B`: two results of the same measurement, number by number."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from flexq_ft.orchestrate.cli.console import console, table_options

SCHEMA = "flexq-ft/compare/1"

EPILOG = """\
Example:
  flexq-ft compare a.json b.json --fail-if 'decode_tok_s < 0.97x'

A and B are JSON files of flexq-ft sweep or flexq-ft bench latency (--save
FILE.json), or folders of sweeps. A condition is METRIC, one of < <= > >=, and
a number: with x it is of B over A, without of B itself. The exit code is 1 if
a condition holds of any case, or a case of A has failed in B.
"""


@click.command("compare", epilog=EPILOG)
@click.argument("a", type=click.Path(exists=True, path_type=Path))
@click.argument("b", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--fail-if",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="What makes it a regression: exit code 1, with the cases. Repeatable.",
)
@click.option(
    "--allow-different",
    is_flag=True,
    help="Also across devices, models and protocols; the result says where they differ.",
)
@table_options
def command(a: Path, b: Path, *, conditions: tuple[str, ...], allow_different: bool) -> int:
    """Compare two results case by case: ratio, interval and verdict of every number."""
    from flexq_ft.orchestrate.compare import report
    from flexq_ft.orchestrate.compare.comparison import compare
    from flexq_ft.orchestrate.compare.condition import parse_condition
    from flexq_ft.orchestrate.compare.result import load_result

    parsed = [parse_condition(text) for text in conditions]
    comparison = compare(load_result(a), load_result(b), allow_different=allow_different)
    failures = {condition.text: condition.offenders(comparison) for condition in parsed}
    for difference in comparison.differences:
        console.warn(f"not alike: {difference}")
    if not console.json_mode:
        table = report.screen_table(comparison)
        if table.row_count:
            console.show(table)
        for line in report.summary_lines(comparison):
            if not line.startswith("not alike"):
                console.out(line)
        for text, offenders in failures.items():
            for line in offenders:
                console.out(f"{text}: {line}")
    console.emit(
        SCHEMA,
        config={
            "a": str(a),
            "b": str(b),
            "fail_if": list(conditions),
            "allow_different": allow_different,
        },
        results=report.to_json(comparison, failures),
        markdown=report.markdown(comparison, failures),
        csv=report.to_csv(comparison),
    )
    return 1 if any(failures.values()) else 0
