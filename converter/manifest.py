"""manifest.json: what a model folder holds, file by file. Same input, same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flexq_ft import _native
from flexq_ft.converter.model_config import ModelConfig
from flexq_ft.converter.schemes import FileSpec, Scheme
from flexq_ft.converter.shards import ShardPlan

__all__ = ["MANIFEST_SCHEMA", "Header", "describe_transform", "dump_json"]

MANIFEST_SCHEMA = "flexq-ft/manifest/1"


@dataclass(frozen=True, kw_only=True)
class Header:
    """Everything of the manifest that is known before a weight is read."""

    source_kind: str
    config: ModelConfig
    scheme: Scheme
    dtype: str
    policy: dict[str, Any] | None
    lm_head: str  # fp16 (the dtype of the float files), w8 or w6
    transforms: tuple[dict[str, Any], ...]
    smoothing: dict[str, Any] | None  # as asked for
    rounding: dict[str, Any] | None  # None: to the nearest codes
    calibration: dict[str, Any] | None  # text_sha256, sequences and length of what these run on

    def smoothed(self, result: Mapping[str, Any]) -> dict[str, Any] | None:
        """The manifest's `quantization.smoothing`: what was asked for, and what came of it."""
        if self.smoothing is None:
            return None
        return self.smoothing | {key: result.get(key) for key in ("alphas", "tokens", "factors")}

    def manifest(
        self,
        plan: ShardPlan,
        *,
        source_sha256: str,
        files: Mapping[str, tuple[FileSpec, str]],
        smoothing: Mapping[str, Any],
    ) -> dict[str, Any]:
        """files: name -> (what it holds, xxh3-128 as 32 hex digits). smoothing: its result."""
        made = {
            "schema": MANIFEST_SCHEMA,
            "tool_version": _native.__version__,
            "source": {
                "kind": self.source_kind,
                "name": self.config.name,
                "sha256": source_sha256,
            },
            "architecture": self.config.architecture,
            "model": self.config.to_manifest(),
            "scheme": self.scheme.name,
            "dtype": self.dtype,
            "policy": self.policy,
            "quantization": self.scheme.to_manifest(
                dtype=self.dtype,
                lm_head=self.lm_head,
                smoothing=self.smoothed(smoothing),
                rounding=self.rounding,
            ),
            "tensor_parallel": plan.to_manifest(),
            "files": {
                name: {
                    "shape": list(spec.shape),
                    "dtype": spec.dtype,
                    "layout": spec.layout,
                    "bytes": spec.nbytes,
                    "xxh3_128": digest,
                }
                for name, (spec, digest) in files.items()
            },
        }
        # Without any the key is absent, as in folders of before there were transforms.
        return made | ({"transforms": list(self.transforms)} if self.transforms else {})


def dump_json(content: Any) -> bytes:
    """JSON with sorted keys and one line end, so that the same content is the same bytes."""
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def describe_transform(entry: Mapping[str, Any]) -> str:
    """Of an entry of `transforms`: rotation (heads hadamard, residual hadamard, seed 0)."""
    rest = ", ".join(f"{key} {value}" for key, value in sorted(entry.items()) if key != "name")
    return f"{entry.get('name')} ({rest})" if rest else str(entry.get("name"))
