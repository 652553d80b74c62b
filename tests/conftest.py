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


_MEASURED: list[str] = []


@pytest.fixture
def measured() -> Callable[[str], None]:
    """Takes a line about what a test measured, shown at the end of the run."""
    return _MEASURED.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _MEASURED:
        terminalreporter.section("measured")
        for line in _MEASURED:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return Path(__file__).parent.parent
