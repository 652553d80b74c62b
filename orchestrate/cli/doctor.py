"""`flexq-ft doctor`: what this machine can and cannot run, and why."""

from __future__ import annotations

from itertools import groupby

import rich_click as click
from rich.table import Table
from rich.text import Text

from flexq_ft.errors import DeviceError
from flexq_ft.orchestrate.cli.console import common_options, console
from flexq_ft.orchestrate.doctor import REQUIREMENTS, diagnose, to_json, unmet
from flexq_ft.orchestrate.finding import Finding

SCHEMA = "flexq-ft/doctor/1"

EPILOG = """\
Examples:
  flexq-ft doctor
  flexq-ft doctor --tp 2 --require mpi     (exit code 4 if it does not hold)
"""
_STYLES = {"ok": "green", "no": "yellow", "info": "dim"}


@click.command("doctor", epilog=EPILOG)
@click.option(
    "--tp",
    type=click.IntRange(min=1),
    metavar="N",
    help="Also start N ranks, and let them meet.",
)
@click.option(
    "--require",
    metavar="LIST",
    default="",
    help=f"Comma-separated: {', '.join(REQUIREMENTS)}. Exit code 4 if one is not there.",
)
@common_options
def command(tp: int | None, require: str) -> int:
    """Say what this machine can and cannot run, and why.

    Versions, CPU, memory, disk, GPUs, MPI, and a self-test of each scheme: on the CPU against
    NumPy, on a GPU against the CPU.
    """
    required = [name.strip() for name in require.split(",") if name.strip()]
    unknown = [name for name in required if name not in REQUIREMENTS]
    if unknown:
        raise click.UsageError(
            f"--require {unknown[0]}: known are {', '.join(REQUIREMENTS)}.",
            click.get_current_context(),
        )
    findings = diagnose(ranks=tp)
    if not console.json_mode:
        for section, lines in groupby(sorted(findings, key=_order), key=lambda f: f.section):
            console.show(_table(section, list(lines)))
    missing = {name: unmet(name, findings) for name in required}
    error = _unmet_error({name: lines for name, lines in missing.items() if lines})
    console.emit(
        SCHEMA,
        config={"tp": tp, "require": required},
        results=to_json(findings),
        error=error,
        markdown=_markdown(findings),
    )
    if error is not None:
        console.error(error)
        return error.exit_code
    return 0


def _order(finding: Finding) -> int:
    return _SECTIONS.index(finding.section)


_SECTIONS = ("build", "machine", "gpu", "mpi", "schemes", "packages", "environment")


def _table(section: str, findings: list[Finding]) -> Table:
    table = Table(title=section, title_justify="left", title_style="bold", box=None)
    table.show_header = False
    table.add_column(min_width=16, no_wrap=True)
    table.add_column(min_width=4)
    table.add_column(overflow="fold")
    for finding in findings:
        status = Text(finding.status, style=_STYLES[finding.status])
        table.add_row(finding.name, status, Text(_explained(finding)))
    return table


def _explained(finding: Finding) -> str:
    text = finding.value
    if finding.why:
        text += f": {finding.why}"
    if finding.hint:
        text += f"\nTry: {finding.hint}"
    return text


def _unmet_error(missing: dict[str, list[Finding]]) -> DeviceError | None:
    if not missing:
        return None
    lines = [line for lines in missing.values() for line in lines]
    return DeviceError(
        f"required, but not available here: {', '.join(missing)}.",
        cause="; ".join(f"{line.name}: {line.value}" for line in lines),
        hint=next((line.hint for line in lines if line.hint), "another machine, or leave it out"),
    )


def _markdown(findings: list[Finding]) -> str:
    rows = "".join(
        f"| {f.section} | {f.name} | {f.status} | {_explained(f).replace(chr(10), ' ')} |\n"
        for f in findings
    )
    return f"| | | | |\n|---|---|---|---|\n{rows}"
