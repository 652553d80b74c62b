"""Schemes as data: what each writes for a linear, and what the manifest says about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flexq_ft.converter.schemes.codec import Codec, FileSpec
from flexq_ft.converter.schemes.float_codec import FloatLinearCodec, PlainCodec
from flexq_ft.converter.schemes.int6_codec import Int6Codec
from flexq_ft.converter.schemes.int8_codec import Int8Codec
from flexq_ft.converter.shards import GROUP_SIZE

__all__ = ["HEAD_CODECS", "SCHEMES", "Codec", "FileSpec", "PlainCodec", "Scheme"]
__all__ += ["with_static_scales"]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """linear: makes the codec of linears from the dtype of float files."""

    name: str
    int8_mode: int  # FasterTransformer's number
    linear: Callable[[str], Codec]
    layout: str = "row_major"
    group_size: int = 0  # along K; 0: one scale per output channel
    quantized: bool = True
    static: bool = False  # the inputs of a linear have one scale, in a file

    def to_manifest(
        self,
        *,
        dtype: str,
        lm_head: str,
        smoothing: Mapping[str, Any] | None,
        rounding: Mapping[str, Any] | None,
    ) -> dict[str, Any] | None:
        stored_head = lm_head if lm_head in HEAD_CODECS else dtype
        if not self.quantized:
            return {"lm_head": stored_head} if lm_head in HEAD_CODECS else None
        made: dict[str, Any] = {
            "group_size": self.group_size,
            "layout": self.layout,
            "layout_version": 1,
            "k_order": "natural",
            "row_map": "natural",
            "smoothing": smoothing and dict(smoothing),
            "lm_head": stored_head,
        }
        if self.static:
            made["activation_scales"] = "static"
        if rounding is not None:
            made["rounding"] = dict(rounding)
        return made


def with_static_scales(scheme: Scheme) -> Scheme:
    """w8a8 whose inputs are not measured token by token."""
    return replace(scheme, static=True, linear=lambda dtype: Int8Codec(static=True))


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="fp16", int8_mode=0, linear=FloatLinearCodec, quantized=False),
        Scheme(name="w8a16", int8_mode=1, linear=lambda dtype: Int8Codec()),
        Scheme(name="w8a8", int8_mode=2, linear=lambda dtype: Int8Codec()),
        Scheme(
            name="w6ax",
            int8_mode=5,
            linear=lambda dtype: Int6Codec(),
            layout="frag16x128",
            group_size=GROUP_SIZE,
        ),
    )
}

# Of a head that is not a float file; activations stay as they are.
HEAD_CODECS: dict[str, Callable[[], Codec]] = {"w8": Int8Codec, "w6": Int6Codec}
