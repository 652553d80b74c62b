"""Parameter types that several verbs share, and the table of schemes for their help."""

from __future__ import annotations

import re

import rich_click as click

SCHEMES = ("fp16", "bf16", "fp32", "w8a16", "w8a8", "w6ax")
# One word for `w6ax` with that policy.
POLICY_SCHEMES = ("flexq", "w6a6", "w6a8", "w6a16")
DTYPES = ("fp16", "bf16", "fp32")

SCHEME_TABLE = """\
scheme  int8_mode  weights                   activations                     bits per weight
fp16    0          16 bit (bf16, fp32 too)   16 bit                          16
w8a16   1          INT8 per output channel   16 bit                          8 + scale
w8a8    2          INT8 per output channel   INT8 per token                  8 + scale
w6ax    5          INT6, groups of 128       by --policy, INT6 or INT8       6.125
        policies:  flexq (default: INT8 into down_proj / fc2, else INT6), w6a6, w6a8, w6a16, FILE
        short:     --scheme flexq | w6a6 | w6a8 | w6a16 is w6ax with that policy"""

_SUFFIXES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class SizeType(click.ParamType):
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


class IntListType(click.ParamType):
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


SIZE = SizeType()
INT_LIST = IntListType()
