"""The standard streams: none that a text makes fail, and stdout's failures said as its own."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def prepare_streams() -> None:
    """Streams that no text can make fail.

    A character that the terminal's encoding does not have is written as `?`, in JSON as its escape
    (json_for_stdout). Bytes of stdin that are none are left for its readers to refuse. A process
    started without a standard stream (`>&-`) has None for it. Its descriptor is taken too, so that
    no file of the run becomes number 0, 1 or 2.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


@contextmanager
def named_stdout() -> Iterator[None]:
    """Says of an error that it is stdout's, as of a full disk that it was redirected to."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        silence_stdout()  # what is still to be written would fail too
        raise OSError(error.errno, error.strerror, "stdout") from error


def silence_stdout() -> None:
    """After a closed pipe: let the interpreter's last flush go nowhere."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, sys.stdout.fileno())
    except (OSError, ValueError):  # a replaced stdout has no descriptor to mend
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    finally:
        os.close(devnull)


def json_for_stdout(value: Any, *, indent: int | None = None) -> str:
    """Escaped where stdout would not have a character: a program that reads it gets it whole."""
    encoding = sys.stdout.encoding or "utf-8"
    is_unicode = encoding.lower().startswith("utf")
    return json.dumps(value, indent=indent, ensure_ascii=not is_unicode)
