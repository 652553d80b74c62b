"""A case as a command line and back: what a row prints is what the sweep itself starts."""

from __future__ import annotations

import shlex
from typing import Any

import rich_click as click

from flexq_ft.converter.options import DTYPES, LM_HEADS, POLICY_SCHEMES, ROUNDINGS, SCHEMES
from flexq_ft.orchestrate.cli.options import NUMBERS
from flexq_ft.orchestrate.eval.perplexity import PROTOCOLS
from flexq_ft.orchestrate.sweep.case_config import Case, resolve_scheme
from flexq_ft.orchestrate.sweep.spec import CalibrationSpec, PerplexitySpec, Quality, Repeat

MODULE = "flexq_ft.orchestrate.sweep.case"


def case_arguments(case: Case) -> list[str]:
    """What follows `python -m flexq_ft.orchestrate.sweep.case`, defaults written out."""
    arguments = [case.model, *(["--synthetic-weights"] if case.synthetic_weights else [])]
    for name in ("scheme", "policy", "dtype", "lm_head"):
        if (value := getattr(case, name)) is not None:
            arguments += [f"--{name.replace('_', '-')}", value]
    arguments += [f"--{name}" for name in ("rotate", "smooth") if getattr(case, name)]
    arguments += [] if case.rounding == "nearest" else ["--rounding", case.rounding]
    if (calibration := case.calibration) is not None:
        arguments += ["--calibration", calibration.text]
        arguments += ["--calibration-sequences", str(calibration.sequences)]
        if calibration.length is not None:
            arguments += ["--calibration-length", str(calibration.length)]
    arguments += ["--step-kernel", case.step_kernel]
    arguments += ["--tp", str(case.tp), "--batch", str(case.batch)]
    arguments += ["--prompt-tokens", str(case.prompt_tokens)]
    arguments += ["--output-tokens", str(case.output_tokens)]
    if case.latency_at:
        arguments += ["--latency-at", ",".join(map(str, case.latency_at))]
    arguments += ["--repeat-min", str(case.repeat.min), "--repeat-max", str(case.repeat.max)]
    if case.repeat.until_cv is not None:
        arguments += ["--repeat-until-cv", str(case.repeat.until_cv)]
    arguments += ["--seed", str(case.seed), "--device", case.device]
    if (ppl := case.quality.ppl) is not None:
        arguments += ["--ppl-text", ppl.text, "--ppl-protocol", ppl.protocol]
        if ppl.window is not None:
            arguments += ["--ppl-window", str(ppl.window)]
        if ppl.max_windows is not None:
            arguments += ["--ppl-max-windows", str(ppl.max_windows)]
    if case.quality.agreement_with is not None:
        arguments += ["--agreement-with", case.quality.agreement_with]
    return arguments


def reproduce_command(case: Case) -> str:
    """The command that measures this case again and prints its row."""
    return shlex.join(["python", "-m", MODULE, *case_arguments(case)])


CASE_PARAMETERS: list[click.Parameter] = [
    click.Argument(["model"]),
    click.Option(["--synthetic-weights"], is_flag=True),
    click.Option(["--scheme"], type=click.Choice((*SCHEMES, *POLICY_SCHEMES))),
    click.Option(["--policy"], metavar="NAME|FILE"),
    click.Option(["--dtype"], type=click.Choice(DTYPES)),
    click.Option(["--lm-head"], type=click.Choice(LM_HEADS)),
    click.Option(["--rotate"], is_flag=True),
    click.Option(["--smooth"], is_flag=True),
    click.Option(["--rounding"], type=click.Choice(ROUNDINGS), default="nearest"),
    click.Option(["--calibration"], type=click.Path(exists=True, dir_okay=False)),
    click.Option(["--calibration-sequences"], type=click.IntRange(1), default=128),
    click.Option(["--calibration-length"], type=click.IntRange(1)),
    click.Option(["--step-kernel"], type=click.Choice(["auto", "on", "off"]), default="auto"),
    click.Option(["--tp"], type=click.IntRange(1), default=1),
    click.Option(["--batch"], type=click.IntRange(1), default=1),
    click.Option(["--prompt-tokens"], type=click.IntRange(1), default=128),
    click.Option(["--output-tokens"], type=click.IntRange(1), default=128),
    click.Option(["--latency-at"], type=NUMBERS, default=[]),
    click.Option(["--repeat-min"], type=click.IntRange(1), default=3),
    click.Option(["--repeat-max"], type=click.IntRange(1), default=3),
    click.Option(["--repeat-until-cv"], type=float),
    click.Option(["--seed"], type=click.IntRange(0), default=0),
    click.Option(["--device"], default="auto"),
    click.Option(["--ppl-text"], type=click.Path(exists=True, dir_okay=False)),
    click.Option(["--ppl-protocol"], type=click.Choice(PROTOCOLS), default="paper"),
    click.Option(["--ppl-window"], type=click.IntRange(2)),
    click.Option(["--ppl-max-windows"], type=click.IntRange(1)),
    click.Option(["--agreement-with"], type=click.Choice((*SCHEMES, *POLICY_SCHEMES))),
]


def case_from_options(options: dict[str, Any]) -> Case:
    """The case that parsed CASE_PARAMETERS describe. Raises ConfigError or ValidationError."""
    ppl = None
    if options["ppl_text"] is not None:
        ppl = PerplexitySpec(
            text=options["ppl_text"],
            protocol=options["ppl_protocol"],
            window=options["ppl_window"],
            max_windows=options["ppl_max_windows"],
        )
    calibration = None
    if options["calibration"] is not None:
        calibration = CalibrationSpec(
            text=options["calibration"],
            sequences=options["calibration_sequences"],
            length=options["calibration_length"],
        )
    scheme, policy = resolve_scheme(options["scheme"], options["policy"])
    return Case(
        model=options["model"],
        scheme=scheme,
        policy=policy,
        calibration=calibration,
        latency_at=tuple(options["latency_at"]),
        repeat=Repeat(
            min=options["repeat_min"],
            max=options["repeat_max"],
            until_cv=options["repeat_until_cv"],
        ),
        quality=Quality(ppl=ppl, agreement_with=options["agreement_with"]),
        **{
            name: options[name]
            for name in (
                "synthetic_weights",
                "dtype",
                "lm_head",
                "rotate",
                "smooth",
                "rounding",
                "step_kernel",
                "tp",
                "batch",
                "prompt_tokens",
                "output_tokens",
                "seed",
                "device",
            )
        },
    )
