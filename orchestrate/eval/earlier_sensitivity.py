"""An earlier result of `flexq-ft sensitivity`, so that another budget costs no measurement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.eval.linear_input import LinearInput
from flexq_ft.orchestrate.eval.sensitivity import Measured, Sensitivity
from flexq_ft.orchestrate.eval.sensitivity_report import FLEXQ, SAME_SHARE, Judged, Judgement

SCHEMA = "flexq-ft/sensitivity/1"


def load_earlier(path: Path, *, model: Path) -> tuple[Judgement, dict[str, Any]]:
    """What it says, but for its own budget, and its `results`.

    Raises ConfigError if the file is no finished result, or one of another model.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA or document["error"] is not None:
            raise ValueError(f"it is no finished result of schema {SCHEMA}.")
        result, measured = document["results"], document["config"]["model"]
        judgement = _judgement(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--from {path} cannot be read.",
            cause=f"{type(error).__name__}: {error}",
            hint="a file that `flexq-ft sensitivity … --save FILE.json` wrote",
        ) from error
    if measured != str(model):
        raise ConfigError(
            f"--from {path} is of another model.",
            cause=f"it measured {measured}, and MODEL is {model}.",
            hint=f"flexq-ft sensitivity {measured} --from {path}",
        )
    return judgement, result


def _judgement(result: Mapping[str, Any]) -> Judgement:
    inputs = {LinearInput(one["layer"], one["linear"]): one for one in result["inputs"]}
    policies = {one["name"]: one for one in result["policies"]}
    sensitivity = Sensitivity(
        only=result["only"],
        macs={read: one["macs"] for read, one in inputs.items()},
        singles={read: one["window_kl"] for read, one in inputs.items()},
        all8=_measured(policies["w6a8"]),
        all6=_measured(policies["w6a6"]),
        float_losses=result["float_window_losses"],
    )

    def judged(name: str) -> Judged:
        eight = policies[name]["a8_layers"]
        bits = {read: 8 if read.layer in eight[read.linear] else 6 for read in inputs}
        return Judged(name, bits, _measured(policies[name]))

    return Judgement(sensitivity, judged(FLEXQ), judged(SAME_SHARE))


def _measured(policy: Mapping[str, Any]) -> Measured:
    return Measured(policy["window_kl"], policy["window_losses"])
