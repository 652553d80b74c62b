"""Which cases of a sweep must fail, as far as their models' headers say it before any has run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from flexq_ft.converter.folder import is_model_folder
from flexq_ft.errors import FlexQFtError
from flexq_ft.orchestrate.bench.roofline import ModelSizes
from flexq_ft.orchestrate.devices import choose_device
from flexq_ft.orchestrate.models import refuse_preparation
from flexq_ft.orchestrate.sweep.case_config import Case


def foreseen_failures(cases: Sequence[Case]) -> list[str]:
    """A line for each reason: GPUs that are not here; a model that is absent or no model, or a
    folder that would have to be converted anew; ranks that do not divide it, lengths beyond its
    positions. Of GGUF files and pytorch_model.bin the first two alone."""
    reasons = Counter(reason for case in cases if (reason := _reason(case)))
    return [f"{count} of {len(cases)} cases will fail: {why}" for why, count in reasons.items()]


def _reason(case: Case) -> str | None:
    source = case.source()
    if not source.exists():
        return f"{source} does not exist"
    try:
        if case.device != "auto":
            choose_device(case.device, scheme="", dtype=None, ranks=case.tp, notify=lambda _: None)
        if is_model_folder(source):
            refuse_preparation(source, case.preparation())
        positions = _positions(source, case.tp, case.scheme == "w6ax", case.synthetic_weights)
    except FlexQFtError as error:
        return error.message.rstrip(".")
    length = case.prompt_tokens + case.output_tokens
    if positions is not None and length > positions:
        return f"{length:,} tokens do not fit the {positions:,} positions of {source}"
    return None


@cache
def _positions(source: Path, tp: int, is_grouped: bool, is_shape: bool) -> int | None:
    """Of a model that `tp` ranks can share; None of what has no cheap header. Raises as whatever
    reads the model in the case itself."""
    from flexq_ft import _native
    from flexq_ft.converter.architectures.hf_config import parse_hf_config
    from flexq_ft.converter.folder import resolve_model_dir
    from flexq_ft.converter.shards import GROUP_SIZE, plan_shards
    from flexq_ft.converter.source.json_file import read_json_object

    if is_shape:
        return ModelSizes.of_ini(source).max_positions
    if is_model_folder(source):
        folder = _native.open_model_folder(str(resolve_model_dir(source, tp)))
        return int(folder.config.max_positions)
    if not (source / "config.json").is_file():
        return None
    config = parse_hf_config(read_json_object(source / "config.json"), name=source.name)
    plan_shards(config, size=tp, group_size=GROUP_SIZE if is_grouped else 0)
    return config.max_positions
