"""What one run of a bundle launches on an NVIDIA GPU, counted without one, by the stand-in of tests/cuda_stand_in.

python -m benchmarks.cuda_launches reviews-cuda --precision fp16 --shape 1x512 --shape 32x512
"""

import re
from pathlib import Path

import click
from rich.table import Table
from tests.cuda_stand_in.build import StandInError, UnavailableError, stand_in
from tests.cuda_stand_in.observe import CPU, CUDA, Observation, Run, observe

from coda_compile.errors import CodaError
from coda_compile.terminal import out, whole
from coda_targets import Bundle

_NAMESPACES = re.compile(r"(onnxruntime|contrib|cuda|cuda_common|\(anonymous namespace\)|detail)::|^void ")
_WIDTH = 96  # columns of a name: templates run to hundreds


class Shape(click.ParamType):
    """``1x512``: a size for each free axis."""

    name = "BATCHxTOKENS"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Read it."""
        try:
            return tuple(int(size) for size in value.split("x"))
        except ValueError:
            self.fail(f"{value} is no shape: write it like 1x512", param, ctx)


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--target", help="Of the variant.  [default: any]")
@click.option("--precision", help="Of the variant.  [default: any]")
@click.option("--shape", "shapes", multiple=True, type=Shape(), default=("1x512",), show_default=True)
@click.option("--kernels", type=click.Path(exists=True, path_type=Path), help="A library of custom operators for CUDA.")
@click.option("--capability", default="9.0", show_default=True, help="Of the card that is stood in for.")
@click.option(
    "--images", type=click.Path(path_type=Path), help="Write where the launched kernels lie in their libraries."
)
def main(
    bundle: Path,
    target: str | None,
    precision: str | None,
    shapes: tuple[tuple[int, ...], ...],
    kernels: Path | None,
    capability: str,
    images: Path | None,
) -> None:
    try:
        model = Bundle(bundle, target=target, precision=precision).model_path if bundle.is_dir() else bundle
        seen = observe(stand_in(), model, shapes, kernels=kernels, capability=capability)
    except (CodaError, StandInError, UnavailableError) as error:
        raise click.ClickException(str(error)) from None
    placed = {name: sum(node.provider == name for node in seen.nodes) for name in (CUDA, CPU)}
    out.print(
        f"onnxruntime {seen.onnxruntime}, compute capability {capability}: {placed[CUDA]:,} nodes on the GPU, "
        f"{placed[CPU]:,} on the CPU, {seen.copies} copies between them; {seen.peak_bytes / 1e6:,.0f} MB on the GPU",
        soft_wrap=True,
    )
    for run in seen.runs:
        whole(launches(run))
    if images:
        images.write_text("".join(f"{library} {offset:x}\n" for library, offset in sorted(homes(seen))), "utf-8")


def launches(run: Run) -> Table:
    """Launches of one shape, the most frequent first."""
    table = Table(title=f"{' x '.join(map(str, run.shape))}: {run.launches:,} launches", title_justify="left")
    for column, justify in (("launches", "right"), ("kind", "left"), ("kernel", "left")):
        table.add_column(column, justify=justify)
    for (kind, name), count in run.by_name().most_common():
        table.add_row(f"{count:,}", kind, shortened(name))
    return table


def shortened(name: str) -> str:
    """A kernel's name without its namespaces and arguments, cut to a line."""
    plain = _NAMESPACES.sub("", name)
    depth, end = 0, len(plain)
    for place, letter in enumerate(plain):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and not depth:
            end = place
            break
    return plain[:end] if end <= _WIDTH else f"{plain[:_WIDTH]}…"


def homes(seen: Observation) -> set[tuple[str, int]]:
    """Libraries with the offsets of the code, for all cards, of every kernel that ran."""
    return {(one.library, one.image) for run in seen.runs for one in (*run.first, *run.later) if one.library}


if __name__ == "__main__":
    main()
