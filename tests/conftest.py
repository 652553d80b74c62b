"""Options and fixtures of all tests. Models are generated; real ones are added with --models."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # tests.reference, tests.tools

# Where the tests were started in the background SIGINT is ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests run several processes on few cores: one OpenMP team per test process is enough.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--models",
        action="append",
        default=[],
        metavar="DIR",
        help="also compare this Hugging Face folder with transformers (repeatable)",
    )
    parser.addoption(
        "--text",
        default=None,
        metavar="FILE",
        help="text for perplexities of --models (default: the text shipped in configs/texts)",
    )
    parser.addoption(
        "--cpu-results",
        default=None,
        metavar="FILE",
        help="JSON with the CPU engine's perplexities: read where it has them, else written",
    )


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line about what a test measured, shown at the end of the run."""

    def add(line: str) -> None:
        # With the report, and so from a worker of pytest-xdist to the terminal.
        request.node.user_properties.append(("measured", line))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == "measured"
    ]
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return Path(__file__).parent.parent
