"""`flexq-ft eval`: what a scheme costs in accuracy, by the engine that serves the model."""

from __future__ import annotations

import rich_click as click

from flexq_ft.orchestrate.cli.group import MemberGroup

# name -> the line of the help page; its module is eval_NAME beside this one.
MEASUREMENTS = {
    "ppl": "Perplexity of a text, by a named protocol.",
    "tasks": "Zero-shot tasks by lm-eval: piqa, arc, boolq, hellaswag, winogrande and others.",
    "kl": "Divergence from FP16: KL of the logits, and how often the same token is likeliest.",
}

EPILOG = """\
Example:
  flexq-ft eval ppl out/llama-7b --text wiki.test.raw --scheme flexq
"""


@click.group("eval", cls=MemberGroup, members=MEASUREMENTS, epilog=EPILOG)
def command() -> None:
    """Evaluate: how much of a model's accuracy a scheme keeps."""
