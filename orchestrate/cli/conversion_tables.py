"""The tables that `convert` shows: what it would write, and what it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from flexq_ft.converter.conversion import FolderReport
    from flexq_ft.converter.planning import ConversionPlan
    from flexq_ft.converter.report import Quality

__all__ = ["plan_table", "quality_table", "report_table", "tensor_table"]


def tensor_table(plan: ConversionPlan, tensors: list[dict[str, Any]]) -> Table:
    """Layer 0 stands for all layers: they are alike."""
    table = Table(title="Tensors (each of the layers like layer 0)")
    table.add_column("tensor")
    table.add_column("shape", justify="right")
    table.add_column("stored as")
    table.add_column("split")
    table.add_column("MB", justify="right")
    for row in tensors:
        parts = row["tensor"].split(".")
        if parts[1] == "layers" and parts[2] != "0":
            continue
        shape = " x ".join(str(n) for n in row["shape"])
        megabytes = f"{row['bytes'] / 1e6:,.2f}"
        table.add_row(row["tensor"], shape, row["scheme"], row["split"], megabytes)
    return table


def plan_table(targets: list[dict[str, Any]]) -> Table:
    table = Table(title="Folders")
    table.add_column("folder")
    for name in ("files", "MB", "MB per rank", "bits per weight"):
        table.add_column(name, justify="right")
    for row in targets:
        ranks = ", ".join(f"{size / 1e6:,.1f}" for size in row["rank_bytes"])
        table.add_row(
            row["path"],
            str(row["files"]),
            f"{row['total_bytes'] / 1e6:,.1f}",
            ranks,
            f"{row['bits_per_weight']:.3f}",
        )
    return table


def report_table(folders: Sequence[FolderReport]) -> Table:
    table = Table()
    table.add_column("folder")
    table.add_column("was")
    for name in ("files", "MB", "bits per weight"):
        table.add_column(name, justify="right")
    for folder in folders:
        table.add_row(
            str(folder.path),
            folder.action,
            str(folder.files),
            f"{folder.total_bytes / 1e6:,.1f}",
            f"{folder.bits_per_weight:.3f}",
        )
    return table


def quality_table(worst: Sequence[Quality], total: int) -> Table:
    table = Table(title=f"Lowest signal to noise, of {total} tensors")
    table.add_column("tensor")
    for name in ("SQNR dB", "largest error", "saturated %"):
        table.add_column(name, justify="right")
    for row in worst:
        table.add_row(
            row.tensor,
            f"{row.sqnr_db:.2f}",
            f"{row.max_abs_error:.3g}",
            f"{100 * row.saturated_share:.2f}",
        )
    return table
