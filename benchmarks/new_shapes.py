"""What a shape costs that a bundle has not run before: its first run against its third, over many lengths.

python benchmarks/new_shapes.py reviews-openvino reviews-cpu
"""

import time
from pathlib import Path
from statistics import median

import click

from coda_targets import Bundle
from coda_targets.bundle import Arrays


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--shapes", default=24, show_default=True, type=click.IntRange(2), help="Lengths, spread to the longest.")
@click.option("--threads", default=0, type=click.IntRange(0), help="[default: the runtime's choice]")
def main(bundles: tuple[Path, ...], shapes: int, threads: int) -> None:
    """Time the first runs of BUNDLES, one text at each of several lengths."""
    for folder in bundles:
        bundle = Bundle(folder, threads=threads)
        began = time.perf_counter()
        session = bundle.session
        opened = time.perf_counter() - began
        signature = bundle.manifest.signature
        lengths = [signature.max_length * (i + 1) // shapes for i in range(shapes)]
        _run(bundle, signature.random(1, lengths[0]))  # the very first run of all is another matter
        first, third = [], []
        for tokens in lengths[1:]:
            inputs = signature.random(1, tokens)
            seconds = [_run(bundle, inputs) for _ in range(3)]
            first.append(seconds[0])
            third.append(seconds[2])
        again = [_run(bundle, signature.random(1, tokens)) for tokens in lengths[1:]]
        more, back = (sorted(a - b for a, b in zip(runs, third, strict=True)) for runs in (first, again))
        click.echo(
            f"{folder}: opened in {opened:.2f} s; over {len(more)} new lengths the first run takes "
            f"{median(more) * 1e3:.1f} ms more than the third, {more[0] * 1e3:.1f} to {more[-1] * 1e3:.1f}; "
            f"coming back to a length takes {median(back) * 1e3:.1f} ms more"
        )
        del session


def _run(bundle: Bundle, inputs: Arrays) -> float:
    began = time.perf_counter()
    bundle.run(inputs)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
