"""Commands that measure: bench, check, report, explain. Parse and call, nothing else."""

import shlex
import sys
from pathlib import Path

import click

from coda_compile import console
from coda_compile.errors import CodaError


@click.group()
def measure() -> None:
    """Holds the commands until ``coda_compile.cli`` takes them over."""


@measure.command(short_help="Latency against the dense adapter in every common runtime.")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--shape", help="Random weights of a known size instead of a model: bert-base, minilm-l6, …")
@click.option("--backbone", metavar="PATH", help="Folder or hub name of a delta checkpoint's backbone.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The model behind a bundle, for dense baselines.")
@click.option("--reduction", "-r", "reductions", multiple=True, help="r to compile at; repeat for several.")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help="Repeat for several.  [default: 1]")
@click.option("--tokens", multiple=True, type=click.IntRange(1), help="Repeat for several.  [default: 128 and 512]")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["fp32", "int8"]), help="[default: both]")
@click.option("--skip", multiple=True, metavar="NAME", help="A baseline to leave out, as 'torch.compile'.")
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(4), help="For each input.")
@click.option("--threads", default=0, type=click.IntRange(0), help="Of each contender, equal.  [default: all cores]")
@click.option("--json", "result_file", type=click.Path(path_type=Path), help="Write the result here, for report.")
def bench(
    model: Path | None,
    shape: str | None,
    backbone: str | None,
    checkpoint: Path | None,
    reductions: tuple[str, ...],
    batches: tuple[int, ...],
    tokens: tuple[int, ...],
    precisions: tuple[str, ...],
    skip: tuple[str, ...],
    rounds: int,
    threads: int,
    result_file: Path | None,
) -> None:
    """Compare MODEL, compiled, with what would be deployed instead: the dense adapter in torch, onnxruntime, optimum
    and OpenVINO, in fp32 and int8.

    MODEL is a checkpoint, or a bundle to measure as it is. Every contender has a process of its own; they run in
    turns, one at a time, on the same inputs and as many threads.

    \b
    coda-compile bench reviews.pt --json bench.json
    coda-compile bench reviews-cpu --checkpoint reviews.pt --tokens 512
    coda-compile bench --shape bert-base -r 4 -r 8
    """
    if (model is None) == (shape is None):
        raise click.UsageError("give a model, a bundle or --shape NAME, one of them")
    if result_file is not None and not result_file.absolute().parent.is_dir():
        raise CodaError(f"{result_file.parent} does not exist: make it, or write --json elsewhere")
    from coda_compile.bench.run import Plan

    plan = Plan(reductions, batches or (1,), tokens, precisions or ("fp32", "int8"), rounds, threads, skip)
    progress = console.Progress()
    with progress.stage("start"):
        import torch  # noqa: F401  first, because transformers prints advice of its own where torch is absent

        from coda_compile.bench import table
        from coda_compile.bench.run import bench as measure_all
        from coda_compile.bench.shapes import random_model
        from coda_compile.sources import read_source
        from coda_models import CodaModel
        from coda_targets import Bundle
        from coda_targets.manifest import MANIFEST
    with progress.stage("load"):
        dense = None if checkpoint is None else read_source(checkpoint, backbone=backbone).model
        subject: CodaModel | Bundle
        if model is None:
            subject = random_model(str(shape))
        elif (model / MANIFEST).is_file():
            subject = Bundle(model)
        else:
            subject = read_source(model, backbone=backbone).model
    result = measure_all(
        subject,
        dense=dense,
        plan=plan,
        name=shape or Path(str(model)).name,
        command=shlex.join(["coda-compile", *sys.argv[1:]]),
        stage=progress.stage,
    )
    table.show(result)
    if result_file is not None:
        result_file.write_text(result.dump(), "utf-8")
