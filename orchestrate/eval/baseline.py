"""An earlier perplexity to compare with: only one of the same windows of the same text can be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.eval.perplexity import Perplexity, TextWindows, perplexity_ratio

SCHEMA = "flexq-ft/eval-ppl/1"


@dataclass(frozen=True)
class Baseline:
    """A saved result of `eval ppl`, as its JSON says."""

    path: Path
    result: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Raises ConfigError if the file is no finished result of `eval ppl`."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            is_result = document["schema"] == SCHEMA and document["error"] is None
            result = document["results"] if is_result else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _no_result(path, f"{type(error).__name__}: {error}") from error
        if not isinstance(result, dict) or len(result.get("window_losses", [])) == 0:
            raise _no_result(path, f"it is not a finished result of schema {SCHEMA}.")
        return cls(path, result)

    def check(self, text: TextWindows) -> None:
        """Raises ConfigError, naming what differs, unless text has the windows of the result."""
        ours = text.to_json()
        unlike = [name for name in ours if ours[name] != self.result.get(name)]
        if unlike:
            raise ConfigError(
                f"this perplexity cannot be compared with that of {self.path}.",
                cause="; ".join(f"{n} {ours[n]}, there {self.result.get(n)}" for n in unlike)
                + ". Perplexities of unlike protocols, windows, texts or tokenizers say nothing of"
                " each other.",
                hint=f"--protocol {self.result.get('protocol')} --window "
                f"{self.result.get('window')} --max-windows {self.result.get('windows')}, on the "
                "same text",
                unlike=unlike,
            )

    def compare(self, ours: Perplexity) -> dict[str, Any]:
        """The ratio of perplexities, with the interval of the windows' paired differences."""
        ratio, interval = perplexity_ratio(ours.window_losses, self.result["window_losses"])
        return {
            "file": str(self.path),
            "perplexity": self.result["perplexity"],
            "ratio": ratio,
            "ratio_confidence95": interval,
        }


def _no_result(path: Path, cause: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be compared with.",
        cause=cause,
        hint="a file that `flexq-ft eval ppl … --save FILE.json` wrote",
    )
