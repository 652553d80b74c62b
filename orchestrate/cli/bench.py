"""`flexq-ft bench`: measurements. Each of them is a module of its own, found when it is used."""

from __future__ import annotations

import rich_click as click

from flexq_ft.orchestrate.cli.group import MemberGroup

# name -> the line of the help page; its module is bench_NAME beside this one.
MEASUREMENTS = {
    "latency": "Prefill and decode of a model, scheme against scheme, beside the memory's limit.",
    "gemm": "The 6-bit products alone, beside cuBLASLt.",
    "tune": "Choose the fastest GPU product for each shape of a model, and write the table.",
}

EPILOG = """\
Example:
  flexq-ft bench latency --shape llama-7b --synthetic-weights --scheme fp16,w8a8
"""


@click.group("bench", cls=MemberGroup, members=MEASUREMENTS, epilog=EPILOG)
def command() -> None:
    """Measure: how fast, and how near to what this machine can do."""
