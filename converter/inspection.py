"""What is in a model folder: sizes, schemes, and the values of one tensor, unpacked."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flexq_ft import _native
from flexq_ft.converter.dtypes import NUMPY_DTYPES, Array, FloatArray, as_float32
from flexq_ft.converter.planning import rank_of
from flexq_ft.converter.shards import GROUP_SIZE
from flexq_ft.converter.verification import load_manifest
from flexq_ft.errors import ConfigError, WeightError

__all__ = ["FolderSummary", "TensorValues", "read_tensor", "summarize"]

# Names of linears -> the part of the file name that holds them.
_LINEAR_FILES = {
    "qkv": ("attention.query_key_value",),
    "o": ("attention.dense",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
    "fc1": ("mlp.dense_h_to_4h",),
    "fc2": ("mlp.dense_4h_to_h",),
}


@dataclass(frozen=True, kw_only=True)
class FolderSummary:
    manifest: dict[str, Any]
    total_bytes: int
    rank_bytes: tuple[int, ...]
    linear_bytes: int
    linear_weights: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.linear_bytes / max(self.linear_weights, 1)


@dataclass(frozen=True, kw_only=True)
class TensorValues:
    """One file. codes and scales: quantised weights only, [N, K] int8 and [N, groups] fp32."""

    file: str
    dtype: str
    layout: str
    shape: tuple[int, ...]
    values: FloatArray  # dequantised; a float linear keeps FasterTransformer's order [K, N]
    codes: Array | None = None
    scales: FloatArray | None = None
    group_size: int = 0

    def statistics(self) -> dict[str, Any]:
        values = self.values
        stats: dict[str, Any] = {
            "min": float(values.min()),
            "max": float(values.max()),
            "mean": float(values.mean(dtype=np.float64)),
            "std": float(values.std(dtype=np.float64)),
            "zeros_share": float(np.count_nonzero(values == 0) / values.size),
        }
        if self.codes is not None:
            codes, counts = np.unique(self.codes, return_counts=True)
            stats["code_counts"] = {int(c): int(n) for c, n in zip(codes, counts, strict=True)}
        return stats


def summarize(folder: Path) -> FolderSummary:
    """Raises WeightError for a folder without a valid manifest."""
    manifest = _strict_manifest(folder)
    files: dict[str, dict[str, Any]] = manifest["files"]
    size = int(manifest["tensor_parallel"]["size"])
    linear = {name for name in files if _is_linear(name)}
    return FolderSummary(
        manifest=manifest,
        total_bytes=sum(entry["bytes"] for entry in files.values()),
        rank_bytes=tuple(
            sum(e["bytes"] for name, e in files.items() if rank_of(name) in (None, rank))
            for rank in range(size)
        ),
        linear_bytes=sum(files[name]["bytes"] for name in linear),
        linear_weights=sum(
            int(np.prod(files[name]["shape"])) for name in linear if "scale." not in name
        ),
    )


def read_tensor(folder: Path, name: str, *, rank: int = 0) -> list[TensorValues]:
    """The files that a name means: a file, an FT stem, or a linear: "layers.0.gate_up", "lm_head".

    Raises ConfigError with near names where nothing is meant, WeightError for a faulty file.
    """
    files = _strict_manifest(folder)["files"]
    wanted = _find(name, files, rank)
    return [_read(folder, file, files) for file in wanted]


def _strict_manifest(folder: Path) -> dict[str, Any]:
    """As the runtime reads it, whose checks make every value what it is taken for here."""
    manifest = load_manifest(folder)
    _native.open_model_folder(str(folder))
    return manifest


def _find(name: str, files: dict[str, Any], rank: int) -> list[str]:
    linear = re.fullmatch(r"layers\.([0-9]+)\.([a-z0-9_]+)", name)
    stems = ["model.lm_head.weight" if name == "lm_head" else name]
    if linear and linear[2] in _LINEAR_FILES:
        stems = [f"model.layers.{linear[1]}.{part}.weight" for part in _LINEAR_FILES[linear[2]]]
    found = []
    for stem in stems:
        forms = [stem, f"{stem}.bin", f"{stem}.{rank}.bin"]
        forms += [f"{stem}.int6.{rank}.bin", f"{stem}.w8.{rank}.bin"]
        found += [form for form in forms if form in files]
    if not found:
        known = sorted(
            {re.sub(r"(\.int6|\.w8)?(\.(act_)?scale)?(\.[0-9]+)?\.bin$", "", f) for f in files}
        )
        ranks = sorted({r for f in files if (r := rank_of(f)) is not None})
        if rank not in ranks and any(_is_shard(f, stem, ranks) for f in files for stem in stems):
            raise ConfigError(
                f"{name!r} has no shard of rank {rank}: the folder holds ranks 0 to {ranks[-1]}",
                hint=f"--rank {ranks[-1]}",
            )
        layers = {name.split(".")[2] for name in known if name.startswith("model.layers.")}
        short = [f"layers.{layer}.{part}" for layer in layers for part in _LINEAR_FILES]
        near = difflib.get_close_matches(name, [*known, *short, "lm_head"], n=3)
        raise ConfigError(
            f"{name!r} (rank {rank}) is no tensor of this folder",
            hint=f"did you mean {', '.join(near)}?" if near else "flexq-ft inspect DIR lists them",
        )
    return found


def _read(folder: Path, file: str, files: dict[str, Any]) -> TensorValues:
    entry = files[file]
    shape = tuple(int(n) for n in entry["shape"])
    dtype, layout = str(entry["dtype"]), str(entry["layout"])
    raw = _load(folder / file, int(entry["bytes"]))
    values: Array
    codes: Array | None = None
    scales: FloatArray | None = None
    group = 0
    try:
        if dtype == "int6":
            codes = _native.kernels.unpack_int6(raw, *shape)
            scales = _load_scales(folder, file.replace(".int6.", ".int6.scale."), files).T
            group = GROUP_SIZE
            values = codes * np.repeat(scales, group, axis=1)[:, : shape[1]]
        else:
            values = raw.view(NUMPY_DTYPES[dtype]).reshape(shape)
        if dtype == "int8":
            codes, group = values, shape[1]
            scales = _load_scales(folder, file.replace(".w8.", ".w8.scale."), files)[:, None]
            values = codes * scales
    except (KeyError, ValueError, TypeError) as error:
        raise WeightError(
            f"{file} does not fit its manifest entry",
            cause=str(error),
            hint="flexq-ft convert SRC OUT repairs it",
        ) from error
    return TensorValues(
        file=file,
        dtype=dtype,
        layout=layout,
        shape=shape,
        values=as_float32(values),
        codes=codes,
        scales=scales,
        group_size=group,
    )


def _load(path: Path, expected: int) -> Array:
    if not path.is_file():
        raise WeightError(f"{path.name} is missing", hint="flexq-ft convert SRC OUT repairs it")
    raw = np.fromfile(path, np.uint8)
    if raw.size != expected:
        raise WeightError(
            f"{path.name} holds {raw.size:,} bytes, expected {expected:,}",
            hint="flexq-ft convert SRC OUT repairs it",
        )
    return raw


def _load_scales(folder: Path, file: str, files: dict[str, Any]) -> FloatArray:
    entry = files[file]
    raw = _load(folder / file, int(entry["bytes"]))
    return as_float32(raw.view(NUMPY_DTYPES[entry["dtype"]]).reshape(entry["shape"]))


def _is_linear(file: str) -> bool:
    parts = (part for group in _LINEAR_FILES.values() for part in group)
    return any(f".{part}.weight" in file for part in parts)


def _is_shard(file: str, stem: str, ranks: list[int]) -> bool:
    return any(file == f"{stem}{form}.{r}.bin" for form in ("", ".int6", ".w8") for r in ranks)
