"""`flexq-ft bench gemm`: the W6Ax products alone, beside cuBLASLt, FlexQ's own method and peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from flexq_ft.errors import ConfigError, DeviceError
from flexq_ft.orchestrate.bench import gemm, gemm_report, peers
from flexq_ft.orchestrate.cli.console import console, table_options, write_atomically
from flexq_ft.orchestrate.cli.options import INT_LIST

SCHEMA = "flexq-ft/bench-gemm/1"

EPILOG = """\
Examples:
  flexq-ft bench gemm --m 1,4,8 --save decode.md --plot decode.png
  flexq-ft bench gemm --shapes llama3,4096x14336:a8 --m 512,2048 --sustained 1
  flexq-ft bench gemm --against humming   # after pip install humming-kernels
  flexq-ft bench gemm --explain --shapes 4096x11008:a8 --m 8

Every kernel of ours is checked against a plain one before it is timed. Weights lie in
so many copies that none is in the cache when it is read again.
"""


@click.command("gemm", epilog=EPILOG)
@click.option(
    "--shapes",
    default="paper",
    metavar="LIST",
    panel="Products",
    help="paper, llama3, weights as NxK or NxK:a8, or a file of such lines.",
)
@click.option(
    "--m",
    "ms",
    type=INT_LIST,
    default="1,2,4,8,16,32,64",
    metavar="LIST",
    panel="Products",
    help="Tokens.",
)
@click.option(
    "--impl",
    "implementations",
    default=",".join((*gemm.W6AX, "btc", *gemm.THEIRS)),
    metavar="LIST",
    panel="Products",
    help="Of stream, wgmma, mma, btc, weight-only, cublaslt-int8, cublaslt-fp16, cublas-nn.",
    show_default="all but weight-only",
)
@click.option(
    "--against",
    multiple=True,
    metavar="LIST",
    panel="Products",
    help="Also kernels of installed packages: humming, marlin.",
)
@click.option(
    "--quantizers",
    is_flag=True,
    panel="Products",
    help="Also what quantising their activations costs, alone and in other ops.",
)
@click.option(
    "--explain",
    is_flag=True,
    panel="Products",
    help="Time nothing: list what could do each product, why not, and which is chosen.",
)
@click.option(
    "--replays",
    type=click.IntRange(min=1),
    default=30,
    metavar="N",
    panel="Measuring",
    help="Timed replays of the best kernels, in turns.",
)
@click.option(
    "--sustained",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    panel="Measuring",
    help="Also time each of the best for so long without a pause.",
)
@click.option(
    "--table",
    type=click.Path(dir_okay=False, path_type=Path),
    panel="Output",
    help="Write the fastest kernels as a table of choices.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    panel="Output",
    help="Draw the times over the byte floor, as bars.",
)
@table_options
def command(
    shapes: str,
    ms: list[int],
    implementations: str,
    against: tuple[str, ...],
    quantizers: bool,
    explain: bool,
    replays: int,
    sustained: float,
    table: Path | None,
    plot: Path | None,
) -> int:
    """Time W6Ax products on this GPU, each kernel beside its peers in one run."""
    from flexq_ft import _native

    names = [name.strip() for name in implementations.split(",")]
    for name in names:
        if name not in (*gemm.OURS, *gemm.THEIRS):
            known = ", ".join((*gemm.OURS, *gemm.THEIRS))
            raise ConfigError(f"--impl has '{name}'; known are {known}.")
    rivals = list(dict.fromkeys(name.strip() for text in against for name in text.split(",")))
    for name in rivals:
        if name not in peers.PEERS:
            known = ", ".join(peers.PEERS)
            raise ConfigError(f"--against has '{name}'; known are {known}.")
    if any(m < 1 for m in ms):
        raise ConfigError(f"--m has {min(ms)}; tokens are at least 1.")
    weights = gemm.parse_shapes(shapes)
    gpus = _native.gpus()
    if not gpus:
        raise DeviceError("there is no GPU to measure on.", hint="flexq-ft doctor")
    gpu = str(gpus[0]["name"])
    if explain:
        lines = gemm.explain(weights, ms, implementations=names)
        for line in lines:
            console.out(line)
        console.emit(SCHEMA, config={"gpu": gpu}, results={"explained": lines})
        return 0
    bandwidth = _native.measure_read_bandwidth(device="cuda", gpu=0)
    console.info(f"{gpu}: {bandwidth / 1e12:.3f} TB/s read")
    found, absent = peers.find(rivals)
    for line in absent:
        console.warn(f"not measured: {line}")
    if found:
        console.info(f"against {', '.join(found)}; what has to be compiled for it comes first")
    total = len(weights) * len(ms)
    done = 0

    def observe(row: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        us = "nothing takes it" if row["us"] is None else f"{row['us']:.2f} us {row['best']}"
        console.info(f"[{done}/{total}] {row['n']}x{row['k']} M={row['m']}: {us}")
        for refused in row["refused"]:
            console.detail("  not measured: " + refused)

    rows = gemm.measure(
        weights,
        ms,
        implementations=names,
        read_bandwidth=bandwidth,
        replays=replays,
        sustained_s=sustained,
        observe=observe,
        against=rivals,
    )
    title = f"W6Ax products on {gpu}"
    versions = {name: version for name in rivals if (version := peers.version(name))}
    state = [f"{gpu}, {bandwidth / 1e12:.3f} TB/s read in this run"]
    state += [f"{name} {version}" for name, version in versions.items()]
    console.show(gemm_report.screen_table(rows, title=title))
    for line in (*gemm_report.summary(rows), *gemm_report.legend_of_peers(rows)):
        console.out(line)
    quantizing = gemm.measure_quantizers(weights, ms) if quantizers else []
    for line in gemm_report.quantizer_lines(quantizing):
        console.out(line)
    if table is not None:
        write_atomically(table, gemm.choices(rows, gpu=gpu))
    if plot is not None:
        gemm_report.plot(rows, plot)
    console.emit(
        SCHEMA,
        config={
            "gpu": gpu,
            "read_bandwidth": bandwidth,
            "sustained_s": sustained,
            "peers": versions,
        },
        results={"products": rows, "quantizers": quantizing},
        markdown=gemm_report.markdown(rows, quantizing, title=title, state=state),
        csv=gemm_report.to_csv(rows),
    )
    return 0
