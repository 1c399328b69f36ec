"""Tasks on one backbone against a bundle each: bytes, resident memory, time to switch, and latency.

python benchmarks/many_tasks.py --model examples/reviews.pt --backbone FOLDER --tasks 10
"""

import gc
import sys
import time
from pathlib import Path
from statistics import median
from subprocess import run
from tempfile import TemporaryDirectory

import click
import psutil
import torch

from coda_compile import compile
from coda_compile.bench import table
from coda_compile.bench.turns import Contender, in_turns
from coda_compile.statistics import ratio_interval
from coda_models import CodaModel, load
from coda_targets import Bundle
from coda_targets.manifest import read_manifest


def varied(model: CodaModel, seed: int) -> CodaModel:
    """Another task of the same shape: what is trained, moved by a little noise."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name in model.trainable_names():
            parameter = model.get_parameter(name)
            parameter.add_(torch.randn_like(parameter) * 0.01 * parameter.std().nan_to_num())
    return model


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@click.group(invoke_without_command=True, help=__doc__)
@click.pass_context
@click.option("--model", type=click.Path(path_type=Path))
@click.option("--backbone", help="Folder or hub name of the pretrained encoder.")
@click.option("--tasks", "count", default=10, show_default=True)
@click.option("--tokens", default=128, show_default=True)
@click.option("--rounds", default=15, show_default=True)
def main(
    context: click.Context, model: Path | None, backbone: str | None, count: int, tokens: int, rounds: int
) -> None:
    if context.invoked_subcommand is not None:
        return
    if model is None:
        raise click.UsageError("give a checkpoint with --model")
    names = [f"task{i}" for i in range(count)]
    with TemporaryDirectory(prefix="coda-tasks-") as name:
        folder = Path(name)
        models = {name: varied(load(model, backbone=backbone).model, seed) for seed, name in enumerate(names)}
        together = compile(models, output=folder / "together").folder
        alone = compile(models[names[0]], output=folder / "alone").folder
        one, all_of_them = size(alone), size(together)
        click.echo(
            f"bytes: one bundle {one / 1e6:.1f} MB, {count} tasks on one backbone {all_of_them / 1e6:.1f} MB, "
            f"{all_of_them / one:.2f} times one, where {count} bundles are {count} times"
        )
        first, shared, separate = (
            _memory(*arguments)
            for arguments in (("single", alone, 1), ("shared", together, count), ("single", alone, count))
        )
        click.echo(
            f"resident memory above the runtime's own: one bundle {first / 1e6:.0f} MB, {count} tasks "
            f"{shared / 1e6:.0f} MB, {shared / first:.2f} times one, {count} bundles {separate / 1e6:.0f} MB"
        )
        inputs = Bundle(alone).manifest.signature.random(1, tokens)
        click.echo(f"switching: {_switch(together, names, inputs) * 1e3:.3f} ms more a run than without")
        contenders = [Contender.of_bundle("alone", alone), Contender.of_bundle("together", together)]
        constant, swappable = in_turns(contenders, [inputs], rounds=rounds).values()
        lost = ratio_interval(swappable.rounds(), constant.rounds())
        click.echo(f"latency at 1 x {tokens}: {lost.middle:.3f}x [{lost.low:.3f}, {lost.high:.3f}] of a bundle alone")
    table.conditions(rounds, 0)


def _memory(kind: str, folder: Path, count: int) -> int:
    """Of a fresh process that holds so many tasks, each run once."""
    command = [sys.executable, __file__, "hold", kind, str(folder), str(count)]
    return int(run(command, check=True, capture_output=True, text=True).stdout)


@main.command(hidden=True)
@click.argument("kind")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("count", type=int)
def hold(kind: str, folder: Path, count: int) -> None:
    """Print the resident bytes that so many tasks add to a process."""
    inputs = read_manifest(folder).signature.random(1, 16)
    before = psutil.Process().memory_info().rss
    held = [Bundle(folder, threads=1) for _ in range(1 if kind == "shared" else count)]
    for bundle in held:
        for task in bundle.tasks or (None,):
            bundle.run(inputs, task=task)
    gc.collect()
    click.echo(psutil.Process().memory_info().rss - before)


def _switch(folder: Path, names: list[str], inputs: dict) -> float:
    """Seconds that a run which takes another task than the last one lasts longer than one which does not."""
    bundle = Bundle(folder)
    feed = bundle.prepare(inputs)
    for name in names:
        bundle.run(feed, task=name)
    staying, switching = [], []
    for i in range(200):
        bundle.run(feed, task=names[0])
        for task, seconds in ((names[0], staying), (names[1 + i % (len(names) - 1)], switching)):
            began = time.perf_counter()
            bundle.run(feed, task=task)
            seconds.append(time.perf_counter() - began)
    return median(switching) - median(staying)


if __name__ == "__main__":
    main()
