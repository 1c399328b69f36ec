"""What routed models gain over the dense one compiled the same way: bundles, or a shape with random weights.

python benchmarks/route_latency.py dense-int8 routed-r4-int8 routed-r8-int8
python benchmarks/route_latency.py --shape bert-base -r 4 -r 8 --precision int8
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from transformers import AutoConfig

from coda_compile import CompileOptions, compile
from coda_compile.bench import table
from coda_compile.bench.shapes import SHAPES
from coda_compile.bench.turns import Contender, in_turns
from coda_models import CodaConfig, convert
from coda_models.backbone import build_backbone
from coda_models.conversion import add_stand_ins
from coda_targets import Bundle


def compiled(shape: str, reductions: Sequence[str], precision: str, folder: Path) -> Iterator[Path]:
    """Bundles of the dense model of a shape and of what ``route`` makes of it, ranks 64 and 64, weights at random."""
    family, sizes = SHAPES[shape]
    for reduction in ("1", *reductions):
        torch.manual_seed(0)
        encoder = build_backbone(AutoConfig.for_model(family, **sizes), "sequence-classification")
        model = convert(encoder, CodaConfig(reduction=1, bottleneck=0))
        if reduction != "1":
            add_stand_ins(model, reduction=reduction, stand_in=64, attention="k_to_all", key_value_rank=64)
            for layer in model.coda_layers():
                assert layer.router is not None
                torch.nn.init.normal_(layer.router.weight, std=0.3)
        yield compile(model, CompileOptions(precision=precision), output=folder / f"r{reduction}").folder


@click.command(help=__doc__)
@click.argument("bundles", type=click.Path(exists=True, path_type=Path), nargs=-1)
@click.option("--shape", type=click.Choice(sorted(SHAPES)), help="As for `coda-compile bench`.")
@click.option("-r", "reductions", multiple=True, default=("4", "8"), show_default=True, help="Of a shape.")
@click.option("--precision", default="fp32", show_default=True, help="Of a shape.")
@click.option("--tokens", multiple=True, type=click.IntRange(1), default=(512,), show_default=True)
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(4))
@click.option("--threads", default=0, type=click.IntRange(0), help="[default: all cores]")
def main(
    bundles: tuple[Path, ...],
    shape: str | None,
    reductions: tuple[str, ...],
    precision: str,
    tokens: tuple[int, ...],
    rounds: int,
    threads: int,
) -> None:
    with ExitStack() as stack:
        if shape is not None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="coda-latency-")))
            bundles = (*bundles, *compiled(shape, reductions, precision, folder))
        opened = {folder.name: Bundle(folder) for folder in bundles}
        base = next(iter(opened))
        for n in tokens:
            contenders = [Contender.of_bundle(name, bundle) for name, bundle in opened.items()]
            inputs = opened[base].manifest.signature.random(1, n)
            timings = in_turns(contenders, [opened[base].prepare(inputs)], rounds=rounds, threads=threads)
            table.variants(f"1 x {n} tokens", timings, base)
        table.conditions(rounds, threads)


if __name__ == "__main__":
    main()
