"""`flexq-ft sensitivity MODEL --calibration FILE`: which inputs need 8 bits, and a policy of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rich_click as click

from flexq_ft.converter.options import DTYPES
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.cli.console import common_options, console, write_atomically
from flexq_ft.orchestrate.cli.eval_options import WindowedText
from flexq_ft.orchestrate.cli.options import SIZE, device_option
from flexq_ft.orchestrate.cli.progress import progress
from flexq_ft.orchestrate.eval.perplexity import TextWindows
from flexq_ft.orchestrate.eval.policy_search import Frontier, policy_yaml
from flexq_ft.orchestrate.eval.resumed_model import Bits, ResumedModel
from flexq_ft.orchestrate.eval.sensitivity import uniform_bits
from flexq_ft.orchestrate.eval.sensitivity_plot import SUFFIXES, draw, require_matplotlib
from flexq_ft.orchestrate.eval.sensitivity_probe import SensitivityProbe
from flexq_ft.orchestrate.eval.sensitivity_report import Judged, Judgement
from flexq_ft.orchestrate.eval.simulation import HfCheckpoint

SCHEMA = "flexq-ft/sensitivity/1"

EPILOG = """\
Examples:
  flexq-ft sensitivity ./llama-7b-hf --calibration wikitext2 --plot inputs.png
  flexq-ft sensitivity ./llama-7b-hf --calibration calib.txt --max-a8 50% \\
    --policy-out half.yaml
  flexq-ft run ./llama-7b-hf "The sky is" --scheme w6ax --policy half.yaml

Runs in torch, with the grids of w6ax (docs/accuracy.md). A policy is as good as
its calibration text is like the texts to come: judge it on another one, by
flexq-ft eval kl MODEL --text FILE --policy half.yaml.
"""


class ShareType(click.ParamType[float]):
    """25% or 0.25."""

    name = "share"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value).strip()
        number = text.removesuffix("%")
        try:
            share = float(number) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{text!r} is no share such as 25% or 0.25.", param, ctx)
        return share


def _known_suffix(
    ctx: click.Context, parameter: click.Parameter, value: Path | None
) -> Path | None:
    if value is not None and value.suffix not in SUFFIXES:
        raise click.BadParameter(f"{value} does not end in one of {', '.join(SUFFIXES)}.")
    return value


@click.command("sensitivity", epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--calibration",
    required=True,
    metavar="FILE|wikitext2|c4",
    panel="Text",
    help="A UTF-8 file, or a data set by name (needs `datasets`, and a network).",
)
@click.option(
    "--tokens",
    type=SIZE,
    default=2048,
    metavar="N",
    panel="Text",
    help="Of the text, in windows spread evenly over it.",
)
@click.option(
    "--window",
    type=SIZE,
    default=256,
    metavar="N",
    panel="Text",
    help="Tokens of a window; each starts with an empty context.",
)
@click.option(
    "--only",
    type=click.Choice(["6", "8"]),
    default="6",
    panel="Measurement",
    help="What is measured of an input: its cost when only it has 6 bits and all else is float, or "
    "its gain when only it has 8 bits and all else has 6.",
)
@click.option(
    "--max-a8",
    type=ShareType(),
    metavar="SHARE",
    panel="Policy",
    help="Most multiply-adds with 8-bit inputs: 25%.  [default: those of policy flexq]",
)
@click.option(
    "--max-ppl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    panel="Policy",
    help="Instead: most perplexity to lose, by prediction, 6-bit weights included.",
)
@click.option(
    "--policy-out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.yaml",
    panel="Policy",
    help="Write the policy that was found, for --policy of the other verbs.",
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    panel="Output",
    callback=_known_suffix,
    help=f"Draw the inputs' KL and what 8-bit inputs buy ({', '.join(SUFFIXES)}).",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="fp32",
    panel="Precision",
    help="Of everything that is not rounded.",
)
@device_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    panel="Parallel",
    help="Of torch.  [default: cores]",
)
@common_options
def command(model: Path, plot_file: Path | None, **options: Any) -> int:
    """Which inputs of MODEL's linears lose most at 6 bits, and the best policy for a budget.

    MODEL is a Hugging Face folder. For each of a layer's four inputs the divergence from the float
    model is measured; the policy gives 8 bits where they save most for their multiply-adds.
    """  # fmt: skip
    if options["max_a8"] is not None and options["max_ppl"] is not None:
        raise ConfigError("--max-a8 and --max-ppl are two budgets.", hint="one of them")
    if plot_file is not None:
        require_matplotlib()
    text = WindowedText.load(
        {
            "text": options["calibration"],
            "protocol": None,
            "window": options["window"],
            "max_windows": None,
        }
    )
    checkpoint = HfCheckpoint(
        model,
        wanted_by="sensitivity",
        dtype=options["dtype"],
        device=options["device"],
        threads=options["threads"],
    )
    windows = _spread(text.cut(checkpoint), options["tokens"])
    resumed = ResumedModel(checkpoint.model)
    console.info(f"{model} in torch on {checkpoint.device}: {len(resumed.macs)} inputs")
    judgement, frontier = _judge(resumed, windows, options)
    description = _describe(windows)
    if (file := options["policy_out"]) is not None:
        head = judgement.comments(model=model.name, text=f"{text.name}, {description}")
        write_atomically(file, policy_yaml(judgement.found.bits, comments=head))
    if plot_file is not None:
        draw(judgement, frontier, plot_file, title=model.name)
    result = {
        **judgement.to_json(),
        "text": text.name,
        "text_sha256": windows.text_sha256,
        "protocol": windows.protocol,
        "window": windows.window,
        "windows": len(windows.windows),
        "tokens": windows.used_tokens,
        "description": description,
    }
    _show(judgement, result, config=_config(model, checkpoint.device, options))
    return 0


def _judge(
    model: ResumedModel, windows: TextWindows, options: Mapping[str, Any]
) -> tuple[Judgement, Frontier]:
    count = len(windows.windows)
    has_budget = options["max_a8"] is not None or options["max_ppl"] is not None
    policies = 3 if has_budget else 2
    with progress("sensitivity", SensitivityProbe.steps(model, count) + policies * count) as bar:
        probe = SensitivityProbe(model, windows.windows.tolist(), advance=bar.advance)
        sensitivity = probe.sensitivity(only=int(options["only"]))
        frontier = Frontier(model.macs, sensitivity.shares())

        def judged(name: str, bits: Bits) -> Judged:
            return Judged(name, bits, probe.measure(bits, name))

        flexq = judged("flexq", _flexq(model))
        share = sensitivity.a8_share(flexq.bits)
        same_share = judged("found, share of flexq", frontier.within(share))
        found = same_share
        if options["max_ppl"] is not None:
            saved = sensitivity.saved_share_for(options["max_ppl"])
            found = judged(f"found, --max-ppl {options['max_ppl']:g}", frontier.saving(saved))
        elif options["max_a8"] is not None:
            bits = frontier.within(options["max_a8"])
            found = judged(f"found, --max-a8 {100 * options['max_a8']:.4g}%", bits)
    ends = [
        Judged("w6a8", uniform_bits(model.macs, 8), sensitivity.all8),
        Judged("w6a6", uniform_bits(model.macs, 6), sensitivity.all6),
    ]
    return Judgement(sensitivity, ends, flexq, same_share, found), frontier


def _flexq(model: ResumedModel) -> Bits:
    from flexq_ft.converter.policy import activation_bits, resolve_policy

    policy = resolve_policy("flexq", num_layers=model.num_layers, linears=model.linears)
    return {read: activation_bits(policy, read.layer, read.linear) for read in model.macs}


def _spread(text: TextWindows, tokens: int) -> TextWindows:
    """Windows of so many tokens, from the whole text. Raises ConfigError if it has fewer."""
    count = max(1, tokens // text.window)
    if count > len(text.windows):
        raise ConfigError(
            f"--tokens {tokens:,} is more than the {text.used_tokens:,} of the text.",
            cause=f"they are cut into {len(text.windows)} windows of {text.window}.",
            hint=f"--tokens {text.used_tokens}, or a longer text",
        )
    at = np.linspace(0, len(text.windows) - 1, count).round().astype(int)
    return replace(text, windows=text.windows[at])


def _describe(windows: TextWindows) -> str:
    return (
        f"{windows.used_tokens:,} tokens in {len(windows.windows)} windows spread over the text, "
        f"protocol {windows.protocol}, text sha256 {windows.text_sha256[:12]}"
    )


def _config(model: Path, device: str, options: Mapping[str, Any]) -> dict[str, Any]:
    out = options["policy_out"]
    names = ("calibration", "tokens", "window", "max_a8", "max_ppl", "dtype")
    return {
        "model": str(model),
        **{name: options[name] for name in names},
        "only": int(options["only"]),
        "policy_out": None if out is None else str(out),
        "device": device,
    }


def _show(judgement: Judgement, result: dict[str, Any], *, config: dict[str, Any]) -> None:
    if not console.json_mode:
        for table in judgement.tables():
            console.show(table)
        console.out(result["verdict"])
        console.out(f"Calibration: {result['description']}")
    console.emit(
        SCHEMA,
        config=config,
        results=result,
        markdown=judgement.markdown(text=result["description"]),
    )
