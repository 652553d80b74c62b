"""`flexq-ft inspect`: what a model folder or a checkpoint holds, down to single weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.table import Table

from flexq_ft.errors import ConfigError, WeightError
from flexq_ft.orchestrate.cli.console import common_options, console

if TYPE_CHECKING:
    from flexq_ft.converter.inspection import FolderSummary, TensorValues

SCHEMA = "flexq-ft/inspect/1"

EPILOG = """\
Examples:
  flexq-ft inspect out/llama-7b --verify
  flexq-ft inspect out/llama-7b layers.0.down --at 16,256
"""

_ROWS, _COLUMNS = 4, 8  # of the corner that is shown


@click.command(
    "inspect",
    epilog=EPILOG,
)
@click.argument("model", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("tensor", required=False)
@click.option("--verify", is_flag=True, help="Check the size and the hash of every file.")
@click.option(
    "--tp",
    type=click.IntRange(min=1),
    metavar="N",
    help="Which folder of several.  [default: the only one, or 1-gpu; --verify: all]",
)
@click.option("--rank", type=click.IntRange(min=0), default=0, help="Whose shard of TENSOR.")
@click.option(
    "--at", default="0,0", metavar="ROW,COLUMN", help="Corner of the values that are shown."
)
@common_options
def command(
    model: Path, tensor: str | None, verify: bool, tp: int | None, rank: int, at: str
) -> None:
    """Show the configuration, sizes and schemes of DIR, or statistics and values of one TENSOR.

    DIR is a folder made by convert, or a checkpoint (Hugging Face folder, GGUF file). TENSOR is a
    linear (layers.0.qkv), or a file's name with or without its end.
    """
    from flexq_ft.converter.folder import is_model_folder, list_model_dirs, resolve_model_dir

    if not is_model_folder(model):
        if tensor or verify:
            raise ConfigError(
                f"{model} is not a model folder: only its configuration can be shown",
                hint=f"flexq-ft inspect {model}",
            )
        _show_source(model)
        return
    folders = list(list_model_dirs(model).values()) if tp is None else []
    if verify:
        _verify(folders or [resolve_model_dir(model, tp)])
        return
    folder = resolve_model_dir(model, tp)
    if tensor:
        _show_tensor(folder, tensor, rank, _corner(at))
    else:
        _show_folder(folder)
    if others := [path.name for path in folders if path != folder]:
        console.info(f"beside it: {', '.join(others)}; --tp N shows another")


def _corner(at: str) -> tuple[int, int]:
    row, comma, column = at.partition(",")
    if not (comma and row.strip().isdecimal() and column.strip().isdecimal()):
        raise ConfigError(f"--at {at!r} is not ROW,COLUMN", hint="--at 16,256")
    return int(row), int(column)


def _verify(folders: Sequence[Path]) -> None:
    from flexq_ft.converter.verification import hashed_files, load_manifest, verify

    place = folders[0] if len(folders) == 1 else folders[0].parent
    total, causes, rows = 0, [], []
    for folder in folders:
        faults = verify(folder)
        count = len(hashed_files(load_manifest(folder)))
        total += count
        if not faults and not console.json_mode:
            console.out(f"{folder}: all {count} files are as the manifest says")
        where = f"{folder.name}/" if len(folders) > 1 else ""
        causes += [f"{where}{fault}" for fault in faults]
        rows += [{"file": f"{where}{fault.file}", "problem": fault.problem} for fault in faults]
    if rows:
        verb = "does" if len(rows) == 1 else "do"
        raise WeightError(
            f"{len(rows)} of {total} weight files in {place} {verb} not match manifest.json.",
            cause="; ".join(causes),
            hint="flexq-ft convert SRC OUT (verifies, and repairs the files that differ)",
            faults=rows,
        )
    console.emit(SCHEMA, config={"model": str(place), "verify": True}, results={"files": total})


def _show_source(path: Path) -> None:
    from flexq_ft.converter.source import open_source

    source = open_source(path)
    try:
        model = source.config.to_manifest()
        tensors = {
            name: {"shape": list(info.shape), "bytes": info.source_bytes}
            for name, info in source.tensors.items()
        }
        total = sum(info.source_bytes for info in source.tensors.values())
    finally:
        source.close()
    if not console.json_mode:
        _show_pairs(f"{source.name} ({source.kind}, not converted)", model)
        console.out(f"{len(tensors)} tensors, {total / 1e6:,.1f} MB")
    console.emit(
        SCHEMA,
        config={"model": str(path)},
        results={"kind": source.kind, "model": model, "total_bytes": total, "tensors": tensors},
    )


def _show_folder(folder: Path) -> None:
    if not (folder / "manifest.json").is_file():
        _show_ft_folder(folder)
        return
    from flexq_ft.converter.inspection import summarize

    summary = summarize(folder)
    if not console.json_mode:
        _show_pairs(str(folder), summary.manifest["model"])
        _show_pairs("Precision and sizes", _precision(summary))
        console.show(_file_table(summary.manifest["files"]))
    console.emit(
        SCHEMA,
        config={"model": str(folder)},
        results={
            "manifest": summary.manifest,
            "total_bytes": summary.total_bytes,
            "rank_bytes": list(summary.rank_bytes),
            "bits_per_weight": summary.bits_per_weight,
        },
    )


def _show_ft_folder(folder: Path) -> None:
    """A folder without a manifest: FasterTransformer's own."""
    from flexq_ft import _native

    opened = _native.open_model_folder(str(folder))
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.bin"))}
    total = sum(sizes.values())
    config = opened.config
    fields = (name for name in dir(config) if not name.startswith("_"))
    model = {name: getattr(config, name) for name in fields}
    results = {"files": sizes, "total_bytes": total, "model": model}
    if not console.json_mode:
        _show_pairs(f"{folder} (FasterTransformer's own: no manifest)", model)
        console.out(f"{len(sizes)} files, {total / 1e6:,.1f} MB")
    console.emit(SCHEMA, config={"model": str(folder)}, results=results)


def _precision(summary: FolderSummary) -> dict[str, Any]:
    from flexq_ft.converter.manifest import describe_transform

    manifest = summary.manifest
    policy = manifest["policy"]
    return {
        "scheme": manifest["scheme"],
        "float files": manifest["dtype"],
        "policy": policy["name"] if policy else "-",
        "transforms": "; ".join(map(describe_transform, manifest.get("transforms", []))) or "-",
        "smoothing": _smoothing(manifest),
        "activation scales": (manifest["quantization"] or {}).get("activation_scales", "dynamic")
        if manifest["scheme"] in ("w8a8", "w6ax")
        else "-",
        "rounding": _rounding(manifest),
        "lm_head": (manifest["quantization"] or {}).get("lm_head", manifest["dtype"]),
        "tensor parallel": manifest["tensor_parallel"]["size"],
        "cut inside groups": ", ".join(manifest["tensor_parallel"]["cut_groups"]) or "-",
        "total": f"{summary.total_bytes / 1e6:,.1f} MB",
        "per rank": ", ".join(f"{size / 1e6:,.1f} MB" for size in summary.rank_bytes),
        "linears": f"{summary.linear_weights:,} weights, {summary.bits_per_weight:.3f} bits each",
        "source": f"{manifest['source']['name']} ({manifest['source']['kind']})",
    }


def _smoothing(manifest: Mapping[str, Any]) -> str:
    """smoothquant, alpha 0.5, calibrated on 65,536 tokens (text sha256 0123456789ab)"""
    smoothing = (manifest["quantization"] or {}).get("smoothing")
    if not smoothing:
        return "-"
    alpha = str(smoothing["alpha"])
    if smoothing["alphas"]:
        found = list(smoothing["alphas"].values())
        used = [value for value in found if value is not None]
        spread = f"{min(used)} to {max(used)}" if used else "none"
        alpha = f"searched, {spread} ({len(found) - len(used)} of {len(found)} not smoothed)"
    return (
        f"{smoothing['method']}, alpha {alpha}, calibrated on {smoothing['tokens']:,} tokens"
        f" (text sha256 {smoothing['calibration']['text_sha256'][:12]})"
    )


def _rounding(manifest: Mapping[str, Any]) -> str:
    """gptq, calibrated on up to 128 x 512 tokens (text sha256 0123456789ab)"""
    if manifest["quantization"] is None:
        return "-"
    rounding = manifest["quantization"].get("rounding") or {"method": "nearest"}
    found = rounding.get("calibration")
    if not found:
        return str(rounding["method"])
    return (
        f"{rounding['method']}, calibrated on up to {found['sequences']} x {found['length']} tokens"
        f" (text sha256 {found['text_sha256'][:12]})"
    )


def _show_pairs(title: str, values: Mapping[str, Any]) -> None:
    # The title may be a path, and a table's own is folded to the width of the table.
    table = Table(show_header=False)
    table.add_column("key")
    table.add_column("value")
    for key, value in values.items():
        table.add_row(key, _shown(value))
    console.out(title)
    console.show(table)


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "-"
    return str(value)


def _file_table(files: Mapping[str, Mapping[str, Any]]) -> Table:
    """Files outside layers, and those of layer 0: the others are alike."""
    table = Table(title=f"{len(files)} files (each of the layers like layer 0)")
    for name in ("file", "shape", "type", "layout"):
        table.add_column(name)
    table.add_column("bytes", justify="right")
    for name, entry in sorted(files.items()):
        parts = name.split(".")
        if parts[1] == "layers" and parts[2] != "0":
            continue
        shape = " x ".join(str(n) for n in entry["shape"])
        table.add_row(name, shape, entry["dtype"], entry["layout"], f"{entry['bytes']:,}")
    return table


def _show_tensor(folder: Path, name: str, rank: int, corner: tuple[int, int]) -> None:
    from flexq_ft.converter.inspection import read_tensor

    results = []
    for tensor in read_tensor(folder, name, rank=rank):
        statistics = tensor.statistics()
        _check_corner(tensor, corner)
        shown = _cut(tensor, corner)
        results.append(
            {
                "file": tensor.file,
                "shape": list(tensor.shape),
                "dtype": tensor.dtype,
                "layout": tensor.layout,
                "statistics": statistics,
                "at": list(corner),
                **shown,
            }
        )
        if not console.json_mode:
            counts = statistics.get("code_counts")
            numbers = {k: f"{v:.6g}" for k, v in statistics.items() if k != "code_counts"}
            title = f"{tensor.file}: {' x '.join(map(str, tensor.shape))} {tensor.dtype}"
            _show_pairs(title, numbers)
            if counts:
                console.show(_histogram(counts))
            for kind, rows in shown.items():
                console.show(_matrix(f"{kind} at {corner[0]},{corner[1]}", rows))
    config = {"model": str(folder), "tensor": name, "rank": rank}
    console.emit(SCHEMA, config=config, results=results)


def _check_corner(tensor: TensorValues, corner: tuple[int, int]) -> None:
    rows, columns = tensor.shape if len(tensor.shape) == 2 else (1, tensor.shape[0])
    row, column = corner
    if row >= rows or column >= columns:
        raise ConfigError(
            f"--at {row},{column} is outside of {tensor.file}, {rows:,} x {columns:,}",
            hint=f"--at from 0,0 to {rows - 1},{columns - 1}",
        )


def _cut(tensor: TensorValues, corner: tuple[int, int]) -> dict[str, list[list[float]]]:
    """The corner's values; with codes and the scales of its rows and groups where quantised."""
    row, column = corner
    if tensor.values.ndim == 1:
        return {"values": [tensor.values[column : column + _COLUMNS].tolist()]}
    rows, columns = slice(row, row + _ROWS), slice(column, column + _COLUMNS)
    shown: dict[str, list[list[float]]] = {}
    if tensor.codes is not None and tensor.scales is not None:
        shown["codes"] = tensor.codes[rows, columns].tolist()
        last = max(column, min(column + _COLUMNS, tensor.shape[1]) - 1)
        groups = slice(column // tensor.group_size, last // tensor.group_size + 1)
        shown["scales"] = tensor.scales[rows, groups].tolist()
    shown["values"] = tensor.values[rows, columns].tolist()
    return shown


def _matrix(title: str, rows: list[list[float]]) -> Table:
    table = Table(title=title, show_header=False)
    for row in rows:
        table.add_row(*(str(v) if isinstance(v, int) else f"{v:.4g}" for v in row))
    return table


def _histogram(counts: Mapping[int, int]) -> Table:
    """How often each code occurs, in eight bins of equal width."""
    low, high = min(counts), max(counts)
    width = max(1, -(-(high - low + 1) // 8))
    bins: dict[int, int] = {}
    for code, count in counts.items():
        bins[(code - low) // width] = bins.get((code - low) // width, 0) + count
    most = max(bins.values())
    table = Table(title="codes", show_header=False)
    for index in sorted(bins):
        first = low + index * width
        bar = "#" * max(1, round(40 * bins[index] / most))
        table.add_row(f"{first} … {min(first + width - 1, high)}", f"{bins[index]:,}", bar)
    return table
