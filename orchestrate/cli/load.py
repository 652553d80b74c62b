"""From the options of a verb to a loaded model and its sampling, for `run`, `chat` and `eval`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flexq_ft.orchestrate.api import LLM
from flexq_ft.orchestrate.cli.console import console
from flexq_ft.orchestrate.cli.options import chosen_scheme
from flexq_ft.orchestrate.cli.progress import ConversionProgress, LoadProgress
from flexq_ft.orchestrate.engine.info import EngineInfo
from flexq_ft.orchestrate.models import FoundModel, find_model
from flexq_ft.orchestrate.sampling import FIELDS, SamplingParams


def load_model(model: Path, options: Mapping[str, Any], *, max_batch: int = 1) -> LLM:
    """Open MODEL as `options.model_options` describe; says what it costs under -v or --max-len."""
    with LoadProgress("loading") as loading:
        llm = LLM(
            model,
            scheme=chosen_scheme(options["scheme"], options["int8_mode"]),
            policy=options["policy"],
            dtype=options["dtype"],
            lm_head=options["lm_head"],
            tensor_parallel_size=options["tp"],
            device=options["device"],
            step_kernel=options["step_kernel"],
            threads=options["threads"],
            max_len=options["max_len"],
            max_batch=max_batch,
            cache_dir=options["cache_dir"],
            notify=console.info,
            progress=ConversionProgress(),
            load_progress=loading,
        )
    info = llm.info
    say = console.info if options["max_len"] else console.detail
    memory = ", ".join(f"{kind} {size / 1e6:,.1f} MB" for kind, size in info.memory_bytes.items())
    say(
        f"{info.model_dir}: {info.scheme} in {info.dtype}, lm_head in {_head(info)}, on "
        f"{info.device}, {info.tensor_parallel_size} rank(s) of {info.threads} thread(s), up to "
        f"{info.max_len:,} tokens, a cache of {info.kv_tokens:,}; of each rank: {memory}"
    )
    if info.gemm_note:
        (console.info if "default" in info.gemm_note else console.detail)(info.gemm_note)
    for line in info.gemm_choices:
        console.detail(line)
    if info.step_note:
        console.detail(info.step_note)
    return llm


def find_scored(model: Path, options: Mapping[str, Any]) -> FoundModel:
    """MODEL as `options.scored_model_options` describe, converted if it has to be."""
    return find_model(
        model,
        tensor_parallel_size=options["tp"],
        scheme=chosen_scheme(options["scheme"], options["int8_mode"]),
        policy=options["policy"],
        dtype=options["dtype"],
        lm_head=options["lm_head"],
        cache_dir=options["cache_dir"],
        notify=console.info,
        progress=ConversionProgress(),
    )


def load_scorer(model: Path, options: Mapping[str, Any], *, tokens: int, max_batch: int = 1) -> LLM:
    """Open MODEL as `options.scored_model_options` describe, for texts of `tokens` tokens, or of
    as many as the model takes, if these are fewer."""
    found = find_scored(model, options)
    chosen = {
        "int8_mode": None,
        "scheme": found.scheme,
        "policy": found.policy,
        "dtype": found.dtype,
        "max_len": min(tokens, found.longest_context()),
        "step_kernel": "auto",
    }
    return load_model(found.folder, {**options, **chosen}, max_batch=max_batch)


def _head(info: EngineInfo) -> str:
    """Floats are held in the compute type."""
    return info.dtype if info.lm_head == "fp16" else info.lm_head


def sampling_from(options: Mapping[str, Any]) -> SamplingParams:
    """The sampling flags as SamplingParams."""
    return SamplingParams(**{name: options[name] for name in FIELDS if name in options})


def resolved_config(llm: LLM, model: Path, params: SamplingParams) -> dict[str, Any]:
    """The envelope's `config`: every choice with its value."""
    sampling = {name: getattr(params, name) for name in FIELDS}
    return {"model": str(model), **asdict(llm.info), "sampling": sampling}
