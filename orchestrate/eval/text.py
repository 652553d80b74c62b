"""The text of an evaluation: a local file, or a data set that `datasets` fetches by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.eval.perplexity import TextProtocol

# As the calibration and evaluation scripts of GPTQ's line read C4.
_C4_FILE = "en/c4-validation.00000-of-00008.json.gz"
_C4_DOCUMENTS = 1100


@dataclass(frozen=True)
class EvalText:
    """A text as bytes, and the protocol that it is read by unless another is asked for."""

    name: str
    data: bytes
    protocol: TextProtocol = "paper"


def load_text(name: str) -> EvalText:
    """A file, `wikitext2` (the test split) or `c4` (1,100 documents of the validation split).

    Raises ConfigError if there is no such file, or `datasets` is absent or cannot load the set.
    """
    if name in _NAMED:
        return _NAMED[name]()
    path = Path(name)
    if not path.exists() or path.is_dir():  # a pipe is as good as a file
        raise ConfigError(
            f"{name} is no file, and no data set that is known by name.",
            cause=f"known by name are {', '.join(_NAMED)}.",
            hint="a UTF-8 text, by its path",
        )
    return EvalText(name, path.read_bytes())


def check_protocol(text: EvalText, protocol: TextProtocol | None) -> TextProtocol:
    """The protocol to read this text by. Raises ConfigError for `paper` on documents."""
    if protocol == "paper" and text.protocol != "paper":
        raise ConfigError(
            f"protocol paper reads the lines of WikiText, and {text.name} is made of documents.",
            cause="they are joined by single spaces and read as they are.",
            hint="--protocol raw",
        )
    return protocol or text.protocol


def _wikitext2() -> EvalText:
    rows = _load("wikitext2", "Salesforce/wikitext", name="wikitext-2-raw-v1", split="test")
    # The script empties lines of white space; with them as they were these are wiki.test.raw's
    # bytes, so that the text's hash is that of the file.
    return EvalText("wikitext2", "".join(row or " \n" for row in rows["text"]).encode())


def _c4() -> EvalText:
    rows = _load("c4", "allenai/c4", data_files={"validation": _C4_FILE}, split="validation")
    documents = rows[:_C4_DOCUMENTS]["text"]
    return EvalText("c4", " ".join(documents).encode(), "raw")


_NAMED: dict[str, Callable[[], EvalText]] = {"wikitext2": _wikitext2, "c4": _c4}


def _load(text: str, path: str, **options: Any) -> Any:
    try:
        load_dataset = import_module("datasets").load_dataset
    except ImportError as error:
        raise ConfigError(
            f"--text {text} needs the package `datasets`.",
            cause=str(error),
            hint="pip install 'flexq-ft[eval]', or --text FILE",
        ) from error
    try:
        return load_dataset(path, **options)
    except Exception as error:  # of the network, the hub, the cache: each has its own kind
        raise ConfigError(
            f"{path} could not be loaded.",
            cause=f"{type(error).__name__}: {error}",
            hint="--text FILE, a local copy; or a network, or the set in the cache of HF_HOME",
        ) from error
