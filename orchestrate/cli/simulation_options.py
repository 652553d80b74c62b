"""`--simulate` and its options, for the members of `eval` that can run a Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.cli.options import given_flags
from flexq_ft.orchestrate.eval.fake_quant import FakeFormat

if TYPE_CHECKING:
    from flexq_ft.orchestrate.eval.simulation import SimulatedModel

_F = TypeVar("_F", bound=Callable[..., Any])

_FORMAT = ("wbits", "abits", "w_group_size", "a_group_size", "symmetric", "flex_linear_quant")
_RUNTIME_ONLY = ("scheme", "int8_mode", "lm_head", "tp", "cache_dir")


def simulation_options(function: _F) -> _F:
    """Group `Simulation`."""
    options = [
        click.option(
            "--simulate", is_flag=True, panel="Simulation",
            help="Fake quantisation of a Hugging Face folder in torch, instead of the runtime: of "
            "the format below, or of w6ax with --policy.",
        ),
        click.option(
            "--wbits", type=click.IntRange(2, 16), default=16, panel="Simulation",
            help="Bits of weights; 16: not quantised.",
        ),
        click.option(
            "--abits", type=click.IntRange(2, 16), default=16, panel="Simulation",
            help="Bits of activations; 16: not quantised.",
        ),
        click.option(
            "--w-group-size", type=click.IntRange(min=1), metavar="N", panel="Simulation",
            help="Inputs that share a weight scale.  [default: all, one scale per channel]",
        ),
        click.option(
            "--a-group-size", type=click.IntRange(min=1), metavar="N", panel="Simulation",
            help="Inputs that share an activation scale.  [default: all, one scale per token]",
        ),
        click.option(
            "--symmetric/--asymmetric", default=False, panel="Simulation",
            help="Around zero, or between minimum and maximum.",
        ),
        click.option(
            "--flex-linear-quant", is_flag=True, panel="Simulation",
            help="8-bit activations into down_proj and fc2; with --abits 6.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def check_simulation(options: Mapping[str, Any]) -> None:
    """Raises ConfigError for options that mean nothing with, or without, --simulate."""
    simulated = options["simulate"]
    if simulated and options["policy"] is not None and (given := given_flags(_FORMAT)):
        raise ConfigError(
            f"{', '.join(given)} cannot be given with --simulate --policy.",
            cause="a policy is of w6ax, whose format is known: 6-bit weights, groups of 128.",
            hint="--simulate --policy NAME|FILE alone",
        )
    if given := given_flags(_RUNTIME_ONLY if simulated else _FORMAT):
        raise ConfigError(
            f"{', '.join(given)} cannot be given with --simulate."
            if simulated
            else f"{', '.join(given)} cannot be given without --simulate.",
            cause="the runtime's choices are --scheme and --policy, the simulation's --policy, or "
            "--wbits, --abits and what is beside them.",
            hint="one kind or the other",
        )


def load_simulation(model: Path, options: Mapping[str, Any]) -> SimulatedModel:
    """MODEL in torch, as the options describe."""
    from flexq_ft.orchestrate.eval.simulation import SimulatedModel

    policy = options["policy"]
    form = FakeFormat(**{name: options[name] for name in _FORMAT})
    return SimulatedModel(
        model,
        form if policy is None else FakeFormat.w6ax(policy),
        dtype=options["dtype"] or "fp32",
        device=options["device"],
        threads=options["threads"],
    )
