"""What each fusion and the native kernels gain: the same model compiled and run without one of them.

python benchmarks/pass_gains.py --model examples/reviews.pt --backbone FOLDER
python benchmarks/pass_gains.py --shape bert-base -r 8 --tokens 512
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from coda_compile import CompileOptions, compile
from coda_compile.backends.cpu import BACKEND, OnnxruntimeBackend
from coda_compile.bench import table
from coda_compile.bench.machine import this_machine
from coda_compile.bench.shapes import random_model
from coda_compile.bench.turns import Contender, in_turns
from coda_compile.errors import CodaError
from coda_compile.passes import Pass, pass_name
from coda_compile.passes.fuse_adapters import FuseAdapters
from coda_compile.passes.fuse_attention import FuseAttention
from coda_compile.passes.fuse_embeddings import FuseEmbeddings
from coda_compile.passes.fuse_gelus import FuseGelus
from coda_compile.passes.fuse_k_to_all import FuseKToAll
from coda_compile.passes.fuse_norms import FuseNorms
from coda_compile.passes.fuse_projections import FuseProjections
from coda_compile.passes.fuse_put_differences import FusePutDifferences
from coda_compile.passes.fuse_routers import FuseRouters
from coda_compile.passes.share_slot_masks import ShareSlotMasks
from coda_compile.passes.trim_to_readout import TrimToReadout

FUSIONS = (FuseAttention(), FuseProjections())
ALONE = (
    FuseAdapters(),
    FuseRouters(),
    FuseGelus(),
    FuseEmbeddings(),
    FuseKToAll(),
    FuseNorms(),
    FusePutDifferences(),
    ShareSlotMasks(),
    TrimToReadout(),
)
WHOLE = "as compiled"
# Name in the table → passes left out, whether without native kernels.
VARIANTS: dict[str, tuple[tuple[str, ...], bool]] = {
    WHOLE: ((), False),
    "without fuse_projections": (FUSIONS[1:], False),
    "without fuse_attention, and so fuse_projections": (FUSIONS, False),
    **{f"without {name}": ((name,), False) for name in ALONE},
    "without native kernels": ((), True),
    "without any of them": ((*FUSIONS, *ALONE), True),
}


@dataclass(frozen=True)
class Without(OnnxruntimeBackend):
    """Target cpu, some passes left out."""

    left_out: tuple[str, ...] = ()

    def passes(self, *, pack: bool = False, half: bool = False) -> list[Pass]:
        return [one for one in super().passes(pack=pack, half=half) if pass_name(one) not in self.left_out]


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path), help="A checkpoint.")
@click.option("--backbone", help="Folder or hub name of the checkpoint's backbone.")
@click.option("--shape", help="Random weights of a known size instead.")
@click.option("--reduction", "-r", default="4", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--only", "wanted", multiple=True, type=click.Choice(list(VARIANTS)), help="[default: all of them]")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1))
@click.option("--tokens", multiple=True, type=click.IntRange(1), default=(128, 512), show_default=True)
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(4))
@click.option("--threads", default=0, type=click.IntRange(0), help="[default: all cores]")
def main(
    model: Path | None,
    backbone: str | None,
    shape: str | None,
    reduction: str,
    precision: str,
    wanted: tuple[str, ...],
    batch: int,
    tokens: tuple[int, ...],
    rounds: int,
    threads: int,
) -> None:
    if (model is None) == (shape is None):
        raise click.UsageError("give --model or --shape, one of them")
    if this_machine().kernels != "native":
        raise click.ClickException("there are no native kernels to measure: coda-compile kernels build")
    source = model if shape is None else random_model(shape)
    variants = {name: how for name, how in VARIANTS.items() if not wanted or name in (WHOLE, *wanted)}
    with TemporaryDirectory(prefix="coda-gains-") as folder:
        bundles = {}
        try:
            for without, _ in variants.values():
                if without not in bundles:
                    backend = Without(BACKEND.runtime, BACKEND.opset, BACKEND.precisions, left_out=without)
                    output = Path(folder) / str(len(bundles))
                    bundles[without] = compile(
                        source,
                        CompileOptions(target=backend, backbone=backbone, reduction=reduction, precision=precision),
                        output=output,
                    )
            contenders = [
                Contender.of_bundle(name, bundles[without].folder, portable=portable)
                for name, (without, portable) in variants.items()
            ]
            signature = next(iter(bundles.values())).manifest.signature
            inputs = [signature.random(batch, n) for n in tokens]
            timings = in_turns(contenders, inputs, rounds=rounds, threads=threads)
        except CodaError as error:
            raise click.ClickException(str(error)) from None
    for case, n in enumerate(tokens):
        table.variants(f"{batch} x {n} tokens, r = {reduction}, {precision}", timings, WHOLE, case)
    table.conditions(rounds, threads)


if __name__ == "__main__":
    main()
