"""Transforms: a checkpoint's tensors, rewritten on their way from source to codec.

A transform is itself a source, read like any other, so transforms stack: conversions stay
streaming and resumable, and no codec knows of them. The folder's manifest lists them in the order
in which they were applied, and a folder of other transforms is another conversion.
"""

from __future__ import annotations

from flexq_ft.converter.options import ConvertOptions
from flexq_ft.converter.source import Source
from flexq_ft.converter.transforms.base import TransformedSource
from flexq_ft.converter.transforms.rotation import RotatedSource
from flexq_ft.converter.transforms.smoothing import SmoothedSource, Smoothing

__all__ = ["RotatedSource", "SmoothedSource", "Smoothing", "TransformedSource", "apply_transforms"]


def apply_transforms(source: Source, options: ConvertOptions) -> Source:
    """The source with everything that the options ask for and no calibration must come before;
    the same one for nothing.

    Raises ConfigError for a transform that does not fit the model.
    """
    if options.rotate:
        source = RotatedSource(source)
    return source
