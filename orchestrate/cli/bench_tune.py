"""`flexq-ft bench tune`: the fastest GPU product for each shape of a model, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from flexq_ft.errors import ConfigError, DeviceError
from flexq_ft.orchestrate.bench import tune as tuning
from flexq_ft.orchestrate.cli.console import common_options, console, write_atomically
from flexq_ft.orchestrate.cli.options import INT_LIST

SCHEMA = "flexq-ft/bench-tune/1"

EPILOG = """\
Examples:
  flexq-ft bench tune --shapes llama-7b,llama-2-13b --scheme fp16
  flexq-ft bench tune --shapes 12288x4096,4096x11008 --m 1,16,512

Every algorithm that cuBLASLt returns (of 64 asked for) and every kernel of ours
is checked against the first of them, timed with weights that are not in the
cache, and the best three once more in turns. The table is written after each
weight. The runtime uses it after the next build.
"""


@click.command("tune", epilog=EPILOG)
@click.option(
    "--shapes",
    default="llama-7b",
    metavar="LIST",
    panel="Products",
    help="Models of configs/models, and weights as OUTPUTSxINPUTS.",
)
@click.option(
    "--m",
    "ms",
    type=INT_LIST,
    default="1,2,4,8,16,32,64,128,256,512,1024,2048",
    metavar="LIST",
    panel="Products",
    help="Tokens, powers of two; each stands for all below it to its half.",
)
@click.option(
    "--scheme",
    "schemes",
    default="fp16,w8a16,w8a8",
    metavar="LIST",
    panel="Products",
    help="Of fp16 (any 16-bit float), w8a16, w8a8.",
)
@click.option(
    "--dtype",
    "dtypes",
    default="fp16",
    metavar="LIST",
    panel="Products",
    help="Compute types of fp16 and w8a16: fp16, bf16.",
)
@click.option(
    "--tp",
    type=INT_LIST,
    default="1",
    metavar="LIST",
    panel="Products",
    help="Also the parts that so many ranks have.",
)
@click.option(
    "--replays",
    type=click.IntRange(min=1),
    default=20,
    metavar="N",
    panel="Measuring",
    help="Timed replays of each of the best.",
)
@click.option(
    "--table",
    type=click.Path(dir_okay=False, path_type=Path),
    panel="Measuring",
    help="File to write or to add to.  [default: configs/gemm/GPU.tsv]",
)
@common_options
def command(
    shapes: str,
    ms: list[int],
    schemes: str,
    dtypes: str,
    tp: list[int],
    replays: int,
    table: Path | None,
) -> int:
    """Measure the GPU products of models, and write which kernel is the fastest for each."""
    from flexq_ft import _native

    weights = _weights(shapes, tp)
    if wrong := [m for m in ms if m < 1 or m & (m - 1)]:
        raise ConfigError(f"--m has {wrong[0]}, which is not a power of two.")
    work = tuning.plan(
        weights,
        schemes=_names(schemes, tuning.SCHEMES, "--scheme"),
        dtypes=_names(dtypes, ("fp16", "bf16"), "--dtype"),
        ms=ms,
    )
    gpus = _native.gpus()
    if not gpus:
        raise DeviceError("there is no GPU to measure on.", hint="flexq-ft doctor")
    gpu = str(gpus[0]["name"])
    path = table or Path("configs/gemm") / tuning.table_name(gpu)
    before = path.read_text(encoding="utf-8") if path.exists() else _native.built_in_gemm_table(gpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    library = _native.cublaslt_info()
    console.info(f"{gpu}, cuBLASLt {library['version']} ({library['path']})")

    def observe(done: int, rows: list[dict[str, Any]], text: str) -> None:
        write_atomically(path, text)
        console.info(f"[{done}/{len(work)}]")
        for row in rows:
            console.info("  " + tuning.summary(row))
            for refused in row["refused"]:
                console.detail("    refused: " + refused)

    rows = tuning.tune(work, table=before, observe=observe, replays=replays)
    lines = [tuning.summary(row) for row in rows]
    console.emit(
        SCHEMA,
        config={"gpu": gpu, "cublaslt": library["version"], "table": str(path), "work": work},
        results=rows,
        markdown="\n".join(f"- {line}" for line in lines) + "\n",
    )
    console.info(f"table: {path}")
    return 0


def _weights(shapes: str, ranks: list[int]) -> list[tuning.Weight]:
    """Of names and NxK, separated by commas."""
    weights: list[tuning.Weight] = []
    for name in (part.strip() for part in shapes.split(",")):
        weight = tuning.parse_weight(name)
        if weight is not None:
            weights.append(weight)
            continue
        from flexq_ft.orchestrate.shapes import find_shape

        for tp in ranks:
            weights += tuning.weights_of_shape(find_shape(name), tp=tp)
    return weights


def _names(text: str, known: tuple[str, ...], option: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(f"{option} has '{name}'; known are {', '.join(known)}.")
    return names
