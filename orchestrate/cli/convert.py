"""`flexq-ft convert`: a checkpoint becomes model folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from flexq_ft.converter.options import DTYPES, LM_HEADS, SCHEME_NAMES
from flexq_ft.orchestrate.cli.calibration_options import calibration_choices, calibration_options
from flexq_ft.orchestrate.cli.console import common_options, console
from flexq_ft.orchestrate.cli.conversion_tables import (
    plan_table,
    quality_table,
    report_table,
    tensor_table,
)
from flexq_ft.orchestrate.cli.options import INT_LIST, SCHEME_TABLE, chosen_scheme
from flexq_ft.orchestrate.cli.progress import ConversionProgress

if TYPE_CHECKING:
    from flexq_ft.converter.conversion import ConvertReport
    from flexq_ft.converter.options import ConvertOptions
    from flexq_ft.converter.planning import ConversionPlan

SCHEMA = "flexq-ft/convert/1"
_WORST = 10  # tensors of the quality report that are shown


EPILOG = f"""\
Examples:
  flexq-ft convert ./llama-7b-hf out/llama-7b --scheme flexq --tp 1,2
  flexq-ft convert ./llama-7b-hf out/w8a8 --scheme w8a8 --calibration text.txt
  flexq-ft convert model.gguf out/model --dry-run

{SCHEME_TABLE}
"""


@click.command("convert", epilog=EPILOG)
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--scheme",
    type=click.Choice(SCHEME_NAMES),
    default=None,
    panel="Precision",
    help="How linears are stored; see the table below.  [default: fp16]",
)
@click.option(
    "--int8-mode",
    type=int,
    default=None,
    panel="Precision",
    help="FasterTransformer's number instead of --scheme: 0, 1, 2 or 5.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=None,
    panel="Precision",
    help="Of norms, embeddings, biases and float weights.  [default: fp16]",
)
@click.option(
    "--policy",
    default=None,
    metavar="NAME|FILE",
    panel="Precision",
    help="w6ax: bits of activations. A default, which run can override.  [default: flexq]",
)
@click.option(
    "--lm-head",
    type=click.Choice(LM_HEADS),
    default="fp16",
    panel="Precision",
    help="The output head: as --dtype (fp16), INT8 per row or INT6 in groups of 128.",
)
@click.option(
    "--rotate",
    is_flag=True,
    panel="Precision",
    help="Spread outlier channels over all channels, in the weights; models with RMS norms.",
)
@calibration_options
@click.option(
    "--tp",
    type=INT_LIST,
    default="1",
    metavar="N,…",
    panel="Parallel",
    help="Tensor-parallel sizes; a folder N-gpu is written for each.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    panel="Parallel",
    help="Tensors worked on at a time; memory grows with it.",
)
@click.option("--force", is_flag=True, help="Start again, and replace a folder that is complete.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@common_options
def command(
    source: Path,
    out: Path,
    scheme: str | None,
    int8_mode: int | None,
    dtype: str | None,
    policy: str | None,
    lm_head: str,
    rotate: bool,
    tp: Sequence[int],
    jobs: int,
    force: bool,
    dry_run: bool,
    **calibration: Any,
) -> None:
    """Convert SRC, a Hugging Face folder or GGUF file, into FasterTransformer folders under OUT.

    A conversion that was interrupted goes on where it stopped. Onto a complete folder of the same
    source and options, convert verifies every file and repairs those that differ.
    """
    from flexq_ft.converter.conversion import convert, plan
    from flexq_ft.converter.options import ConvertOptions

    options = ConvertOptions(
        scheme=chosen_scheme(scheme, int8_mode) or "fp16",
        dtype=dtype,
        policy=policy,
        lm_head=lm_head,
        rotate=rotate,
        **calibration_choices(calibration),
        tp=tuple(tp),
        jobs=jobs,
        force=force,
    )
    if dry_run:
        _show_plan(plan(source, options), source, out, options)
        return
    try:
        report = convert(source, out, options, progress=ConversionProgress())
    except KeyboardInterrupt:
        console.info("\nfinished tensors are kept: the same command goes on where it stopped")
        raise
    _show_report(report, source, out, options)


def _config(source: Path, out: Path, options: ConvertOptions) -> dict[str, Any]:
    return {
        "source": str(source),
        "out": str(out),
        "scheme": options.resolved_scheme,
        "dtype": options.resolved_dtype,
        "policy": options.resolved_policy,
        "lm_head": options.lm_head,
        "rotate": options.rotate,
        "calibration": None if options.calibration is None else str(options.calibration.text),
        "smooth_alpha": options.resolved_alpha,
        "activation_scales": options.activation_scales,
        "rounding": options.rounding,
        "tp": list(options.tp),
        "jobs": options.jobs,
        "force": options.force,
    }


def _show_plan(plan: ConversionPlan, source: Path, out: Path, options: ConvertOptions) -> None:
    targets = [
        {
            "path": str(out / target.folder_name),
            "tp": target.shards.size,
            "files": len(target.files),
            "total_bytes": target.total_bytes,
            "rank_bytes": [target.rank_bytes(rank) for rank in range(target.shards.size)],
            "bits_per_weight": plan.bits_per_weight(target),
        }
        for target in plan.targets
    ]
    first = plan.targets[0]
    tensors = [
        {
            "tensor": unit.stem,
            "shape": [unit.rows, unit.columns] if unit.columns else [unit.rows],
            "scheme": plan.stored_as(unit),
            "split": unit.split.value,
            "bytes": sum(
                first.files[name].nbytes for name in plan.codec(unit).files(unit, first.shards)
            ),
        }
        for unit in plan.units
    ]
    for warning in plan.warnings:
        console.warn(warning)
    results = {
        "dry_run": True,
        "layers": plan.header.config.num_layers,
        "weights": plan.total_elements,
        "source_bytes": plan.source_bytes,
        "peak_memory_bytes": plan.peak_bytes,
        "folders": targets,
        "tensors": tensors,
    }
    if not console.json_mode:
        console.show(tensor_table(plan, tensors))
        console.show(plan_table(targets))
        config = plan.header.config
        console.out(
            f"{config.name}: {config.num_layers} layers, {plan.total_elements:,} weights;"
            f" about {plan.peak_bytes / 1e6:,.0f} MB of memory at most. Nothing was written."
        )
    console.emit(SCHEMA, config=_config(source, out, options), results=results)


def _show_report(report: ConvertReport, source: Path, out: Path, options: ConvertOptions) -> None:
    for warning in report.plan.warnings:
        console.warn(warning)
    worst = sorted(
        (row for row in report.quality if row.sqnr_db is not None),
        key=lambda row: row.sqnr_db or 0.0,
    )[:_WORST]
    if report.calibration:
        console.info(f"calibrated on {report.calibration}")
    if options.resolved_scheme == "w8a8" and options.resolved_alpha is None:
        console.info("the weights are not smoothed; --calibration FILE smooths them (SmoothQuant)")
    if not console.json_mode:
        console.show(report_table(report.folders))
        if worst:
            console.show(quality_table(worst, len(report.quality)))
        console.info(f"done in {report.seconds:.1f} s")
    results = {
        "dry_run": False,
        "weights": report.plan.total_elements,
        "source_bytes": report.plan.source_bytes,
        "folders": [
            {
                "path": str(folder.path),
                "tp": folder.tp,
                "action": folder.action,
                "files": folder.files,
                "total_bytes": folder.total_bytes,
                "bits_per_weight": folder.bits_per_weight,
            }
            for folder in report.folders
        ],
        "worst_tensors": [row.to_json() for row in worst],
        "duration_ms": round(1000 * report.seconds, 1),
    }
    console.emit(SCHEMA, config=_config(source, out, options), results=results)
