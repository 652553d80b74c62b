"""Options and parameter types that several verbs share, and the table of schemes for their help."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click
from click import get_current_context
from click.core import ParameterSource

from flexq_ft.converter.options import DTYPES, LM_HEADS, SCHEME_NAMES, scheme_of_int8_mode
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.devices import check_device
from flexq_ft.orchestrate.number_list import expand_numbers

_F = TypeVar("_F", bound=Callable[..., Any])

SCHEME_TABLE = """\
scheme  int8_mode  weights                  activations       bits per weight
fp16    0          16 bit (bf16 and fp32 likewise)            16
w8a16   1          INT8 per output channel  16 bit            8 + scale
w8a8    2          INT8 per output channel  INT8 per token    8 + scale
w6ax    5          INT6 in groups of 128    by --policy       6.125
Policies of w6ax: flexq (default; INT8 into down_proj / fc2, else INT6),
w6a6, w6a8, w6a16, or a YAML file. --scheme flexq is w6ax with that policy."""

_SUFFIXES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class SizeType(click.ParamType[int]):
    """A whole number, with k, M, G or T for powers of 1024: 32k, 4G."""

    name = "number"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)([kKmMgGtT]?)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a number such as 2048, 32k or 4G.", param, ctx)
        return int(match[1]) * _SUFFIXES[match[2].lower()]


class IntListType(click.ParamType[list[int]]):
    """Whole numbers, comma-separated: 1,2,4."""

    name = "list"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        if isinstance(value, list | tuple):
            return [int(v) for v in value]
        try:
            return [int(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 1,2,4.", param, ctx)


class NumbersType(click.ParamType[list[int]]):
    """Whole numbers above 0 in the grammar of sweeps: 8, 1,2,4, 1-64*2, 128-1024+128, 2k."""

    name = "numbers"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        try:
            numbers = expand_numbers(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        assert isinstance(numbers, list)
        wrong = next((n for n in numbers if not isinstance(n, int) or n < 1), None)
        if wrong is not None:
            self.fail(f"{wrong!r} is not a number above 0, or a range such as 1-16*2.", param, ctx)
        return list(dict.fromkeys(numbers))


SIZE = SizeType()
INT_LIST = IntListType()
NUMBERS = NumbersType()


def chosen_scheme(scheme: str | None, int8_mode: int | None) -> str | None:
    """The scheme that --scheme or --int8-mode names; both together are an error."""
    if int8_mode is None:
        return scheme
    if scheme is not None:
        raise ConfigError(
            "--scheme and --int8-mode were both given.",
            cause=f"--scheme {scheme}, --int8-mode {int8_mode}; they say the same thing.",
            hint="leave --int8-mode out",
        )
    return scheme_of_int8_mode(int8_mode)


def device_option(function: _F) -> _F:
    """--device, of every verb that runs models."""
    return click.option(
        "--device", default="auto", metavar="auto|cpu|cuda|cuda:N", panel="Parallel",
        callback=_known_device,
        help="auto: a GPU where one can run the model, else the CPU. With --tp each rank has one.",
    )(function)  # fmt: skip


def step_kernel_option(function: _F) -> _F:
    """--step-kernel, of the verbs that say how a GPU decodes."""
    return click.option(
        "--step-kernel", type=click.Choice(["auto", "on", "off"]), default="auto",
        panel="Parallel",
        help="A GPU's decode steps as one kernel: auto where measured to be faster, on wherever it"
        " takes the batch, off never.",
    )(function)  # fmt: skip


def lm_head_option(function: _F) -> _F:
    """--lm-head, of verbs that may convert a model first."""
    return click.option(
        "--lm-head", type=click.Choice(LM_HEADS), panel="Precision",
        help="The output head: in floats (fp16), INT8 or INT6.  [default: as converted, or fp16]",
    )(function)  # fmt: skip


def _known_device(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    return check_device(value)


def model_options(function: _F) -> _F:
    """How a model is loaded: groups `Model`, `Precision` and `Parallel`."""
    max_len = click.option(
        "--max-len", type=SIZE, metavar="N", panel="Model",
        help="Longest prompt + output in tokens.  [default: the model's positions]",
    )  # fmt: skip
    return max_len(step_kernel_option(scored_model_options(function)))


def scored_model_options(function: _F) -> _F:
    """As model_options, for verbs that choose the context themselves."""
    options = [
        click.option(
            "--cache-dir", type=click.Path(file_okay=False, path_type=Path), panel="Model",
            help="Where models converted on the fly are kept.  [default: ~/.cache/flexq-ft]",
        ),
        click.option(
            "--scheme", type=click.Choice(SCHEME_NAMES), panel="Precision",
            help="Weights and activations; see the table below.  [default: as converted, or fp16]",
        ),
        click.option(
            "--int8-mode", type=int, panel="Precision",
            help="FasterTransformer's number instead of --scheme: 0, 1, 2 or 5.",
        ),
        click.option(
            "--policy", metavar="NAME|FILE", panel="Precision",
            help="Activation bits of w6ax.  [default: as converted]",
        ),
        click.option(
            "--dtype", type=click.Choice(DTYPES), panel="Precision",
            help="Compute type.  [default: that of the model folder]",
        ),
        lm_head_option,
        device_option,
        click.option(
            "--tp", type=click.IntRange(min=1), default=1, metavar="N", panel="Parallel",
            help="Ranks that share the model; started with mpirun unless under it already.",
        ),
        click.option(
            "--threads", type=click.IntRange(min=1), metavar="N", panel="Parallel",
            help="Threads of each rank.  [default: cores / ranks]",
        ),
    ]  # fmt: skip
    return _apply(options, function)


def sampling_options(function: _F) -> _F:
    """How tokens are chosen; the names of SamplingParams."""
    options = [
        click.option(
            "--max-tokens", type=SIZE, default=128, metavar="N", panel="Sampling",
            help="Most tokens of the output.",
        ),
        click.option(
            "--temperature", type=float, default=0.0, panel="Sampling",
            help="0 is greedy: always the likeliest token.",
        ),
        click.option(
            "--top-k", type=int, default=0, panel="Sampling",
            help="Only the K likeliest tokens; 0: all.",
        ),
        click.option(
            "--top-p", type=float, default=1.0, panel="Sampling",
            help="Only the likeliest tokens that make up this mass.",
        ),
        click.option(
            "--min-p", type=float, default=0.0, panel="Sampling",
            help="Only tokens at least this likely, as a share of the likeliest.",
        ),
        click.option(
            "--repetition-penalty", type=float, default=1.0, panel="Sampling",
            help="Above 1: tokens seen before are less likely.",
        ),
        click.option(
            "--presence-penalty", type=float, default=0.0, panel="Sampling",
            help="Taken off the logits of tokens seen before.",
        ),
        click.option(
            "--min-tokens", type=int, default=0, metavar="N", panel="Sampling",
            help="No end before so many tokens.",
        ),
        click.option(
            "--stop", multiple=True, metavar="TEXT", panel="Sampling",
            help="End before this text. Repeatable.",
        ),
        click.option(
            "--ignore-eos", is_flag=True, panel="Sampling",
            help="Go on after the end token.",
        ),
        click.option(
            "--seed", type=int, panel="Sampling",
            help="Same seed, same tokens.  [default: drawn, and recorded in the result]",
        ),
    ]  # fmt: skip
    return _apply(options, function)


def given_flags(names: Iterable[str]) -> list[str]:
    """Those of the running command that its line or the environment gave, as flags."""
    source = get_current_context().get_parameter_source
    return [
        f"--{name.replace('_', '-')}"
        for name in names
        if source(name) is not ParameterSource.DEFAULT
    ]


def _apply(options: Sequence[Callable[[Any], Any]], function: _F) -> _F:
    for option in reversed(options):
        function = option(function)
    return function
