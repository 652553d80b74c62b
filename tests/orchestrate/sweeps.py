"""The case that a command line means, read as the process of a case reads it."""

from __future__ import annotations

from collections.abc import Sequence

from flexq_ft.orchestrate.sweep.case import command
from flexq_ft.orchestrate.sweep.case_config import Case
from flexq_ft.orchestrate.sweep.command import case_from_options


def parsed_case(arguments: Sequence[str]) -> Case:
    return case_from_options(command.make_context("case", [*arguments]).params)
