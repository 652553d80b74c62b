"""`flexq-ft sensitivity MODEL --calibration FILE`: which inputs need 8 bits, and a policy of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rich_click as click

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.cli.console import common_options, console, write_atomically
from flexq_ft.orchestrate.cli.options import given_flags
from flexq_ft.orchestrate.cli.progress import progress
from flexq_ft.orchestrate.cli.sensitivity_options import WINDOW, sensitivity_options
from flexq_ft.orchestrate.eval.earlier_sensitivity import SCHEMA, load_earlier
from flexq_ft.orchestrate.eval.perplexity import TextWindows, cut_windows
from flexq_ft.orchestrate.eval.policy_search import Frontier, policy_yaml
from flexq_ft.orchestrate.eval.resumed_model import Bits, ResumedModel
from flexq_ft.orchestrate.eval.sensitivity import Measured, Sensitivity
from flexq_ft.orchestrate.eval.sensitivity_plot import draw, require_matplotlib
from flexq_ft.orchestrate.eval.sensitivity_probe import SensitivityProbe
from flexq_ft.orchestrate.eval.sensitivity_report import (
    FLEXQ,
    SAME_SHARE,
    Judged,
    Judgement,
)
from flexq_ft.orchestrate.eval.simulation import HfCheckpoint
from flexq_ft.orchestrate.eval.text import load_text

_ASKED = ("tokens", "window", "dtype")
_MEASUREMENT = (*_ASKED, "only", "device", "threads")  # what --from has behind it

EPILOG = """\
Examples:
  flexq-ft sensitivity ./llama-7b-hf --calibration c4 --plot inputs.png
  flexq-ft sensitivity ./llama-7b-hf --calibration calib.txt --max-a8 50% \\
    --policy-out half.yaml
  flexq-ft run ./llama-7b-hf "The sky is" --scheme w6ax --policy half.yaml

Runs in torch, with the grids of w6ax (docs/accuracy.md). A policy is as good as
its calibration text is like the texts to come: judge it on another one, by
flexq-ft eval kl MODEL --text FILE --policy half.yaml.
"""


@click.command("sensitivity", epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@sensitivity_options
@common_options
def command(
    model: Path,
    earlier: Path | None,
    plot_file: Path | None,
    policy_out: Path | None,
    **options: Any,
) -> int:
    """Which inputs of MODEL's linears lose most at 6 bits, and the best policy for a budget.

    MODEL is a Hugging Face folder. For each of a layer's four inputs the divergence from the float
    model is measured; the policy gives 8 bits where they save most for their multiply-adds.
    """
    _check(earlier, options)
    if plot_file is not None:
        require_matplotlib()
    if earlier is None:
        judgement, result, device = _measure(model, options)
    else:
        judgement, result = load_earlier(earlier, model=model)
        frontier = Frontier(judgement.sensitivity.macs, judgement.sensitivity.shares())
        judgement = _for_budget(judgement, frontier, options, measure=lambda bits, name: None)
        device = None
    is_met = judgement.asked is not None or options["max_ppl"] is None
    if not is_met:
        _warn(judgement.sensitivity, options["max_ppl"], policy_out)
    elif policy_out is not None:
        read = f"{result['text']}, {result['description']}"
        head = judgement.comments(model=model.name, text=read)
        write_atomically(policy_out, policy_yaml(judgement.found.bits, comments=head))
    if plot_file is not None:
        draw(judgement, plot_file, title=model.name)
    config = {
        "model": str(model),
        "from": earlier and str(earlier),
        **{name: options[name] for name in ("calibration", "max_a8", "max_ppl")},
        **{name: options[name] if earlier is None else None for name in _ASKED},
        "only": judgement.sensitivity.only,
        "policy_out": policy_out and str(policy_out),
        "device": device,
    }
    _show(judgement, {**result, **judgement.to_json()}, config=config)
    return 0 if is_met else 1


def _check(earlier: Path | None, options: Mapping[str, Any]) -> None:
    if (earlier is None) == (options["calibration"] is None):
        raise ConfigError(
            "give a text to measure on, or an earlier result: one of them.",
            hint="--calibration FILE, or --from RESULT.json",
        )
    if earlier is not None and (given := given_flags(_MEASUREMENT)):
        raise ConfigError(
            f"{', '.join(given)} cannot be given with --from.",
            cause="nothing is measured again: it is read how it was.",
            hint="--from with a budget alone, or --calibration FILE",
        )
    if options["max_a8"] is not None and options["max_ppl"] is not None:
        raise ConfigError("--max-a8 and --max-ppl are two budgets.", hint="one of them")


def _measure(model: Path, options: Mapping[str, Any]) -> tuple[Judgement, dict[str, Any], str]:
    """The judgement, the `results` that say what it was measured on, and the device."""
    text = load_text(options["calibration"])
    checkpoint = HfCheckpoint(
        model,
        wanted_by="sensitivity",
        dtype=options["dtype"],
        device=options["device"],
        threads=options["threads"],
    )
    cut = cut_windows(
        text.data,
        checkpoint.encode,
        protocol=text.protocol,
        max_positions=checkpoint.max_positions,
        window=options["window"] or min(WINDOW, checkpoint.max_positions),
    )
    windows = _spread(cut, options["tokens"])
    resumed = ResumedModel(checkpoint.model)
    console.info(f"{model} in torch on {checkpoint.device}: {len(resumed.macs)} inputs")
    result = {
        "text": text.name,
        "text_sha256": windows.text_sha256,
        "protocol": windows.protocol,
        "window": windows.window,
        "windows": len(windows.windows),
        "tokens": windows.used_tokens,
        "description": _describe(windows),
    }
    return _judge(resumed, windows, options), result, checkpoint.device


def _judge(model: ResumedModel, windows: TextWindows, options: Mapping[str, Any]) -> Judgement:
    count = len(windows.windows)
    has_budget = options["max_a8"] is not None or options["max_ppl"] is not None
    steps = SensitivityProbe.steps(model, count) + count * (3 if has_budget else 2)
    with progress("sensitivity", steps) as bar:
        probe = SensitivityProbe(model, windows.windows.tolist(), advance=bar.advance)
        sensitivity = probe.sensitivity(only=int(options["only"]))
        frontier = Frontier(model.macs, sensitivity.shares())
        flexq = _flexq(model)
        same = frontier.within(sensitivity.a8_share(flexq))
        judgement = Judgement(
            sensitivity,
            Judged(FLEXQ, flexq, probe.measure(flexq, FLEXQ)),
            Judged(SAME_SHARE, same, probe.measure(same, SAME_SHARE)),
        )
        return _for_budget(judgement, frontier, options, measure=probe.measure)


def _for_budget(
    judgement: Judgement,
    frontier: Frontier,
    options: Mapping[str, Any],
    *,
    measure: Callable[[Bits, str], Measured | None],
) -> Judgement:
    """With the policy for --max-a8 or --max-ppl; without one if there is no budget, or none that
    meets it."""
    max_a8, max_ppl = options["max_a8"], options["max_ppl"]
    if max_a8 is not None:
        name, bits = f"found, --max-a8 {100 * max_a8:.4g}%", frontier.within(max_a8)
    elif max_ppl is not None:
        saved = judgement.sensitivity.saved_share_for(max_ppl)
        if saved is None:
            return judgement
        name, bits = f"found, --max-ppl {max_ppl:g}", frontier.saving(saved)
    else:
        return judgement
    return replace(judgement, asked=Judged(name, bits, measure(bits, name)))


def _warn(sensitivity: Sensitivity, max_ppl: float, policy_out: Path | None) -> None:
    least = sensitivity.measured_ppl_loss(sensitivity.all8).value
    unwritten = "" if policy_out is None else f" {policy_out} was not written."
    console.warn(
        f"no policy of 8 and 6 bits is predicted to lose at most {max_ppl:g} of perplexity: with "
        f"6-bit weights all inputs at 8 bits lose {least:.4f} on this text.{unwritten}"
    )


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
        f"{len(windows.windows)} windows of {windows.window:,} tokens spread over the text, "
        f"protocol {windows.protocol}, text sha256 {windows.text_sha256[:12]}"
    )


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
