"""What dynamic batch and length cost: a bundle's model against itself with both fixed.

python benchmarks/static_shapes.py model-cpu model-int8 --tokens 128 --tokens 512
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import click
import onnx
from onnxruntime.tools.onnx_model_utils import fix_output_shapes, make_dim_param_fixed

from coda_compile.bench import table
from coda_compile.bench.turns import Contender, in_turns
from coda_targets import Bundle


def fixed(model: Path, tokens: int, path: Path) -> Path:
    """A copy of a model for one text of so many tokens."""
    proto = onnx.load(str(model))
    for name, size in (("batch", 1), ("sequence", tokens)):
        make_dim_param_fixed(proto.graph, name, size)
    fix_output_shapes(proto)
    onnx.save(proto, str(path))
    return path


@click.command(help=__doc__)
@click.argument("bundles", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
@click.option("--tokens", multiple=True, type=click.IntRange(1), default=(512,), show_default=True)
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(4))
@click.option("--threads", default=0, type=click.IntRange(0), help="[default: all cores]")
def main(bundles: tuple[Path, ...], tokens: tuple[int, ...], rounds: int, threads: int) -> None:
    for folder in bundles:
        bundle = Bundle(folder)
        for n in tokens:
            with TemporaryDirectory(prefix="coda-static-") as name:
                paths = {"fixed": fixed(bundle.model_path, n, Path(name) / "model.onnx"), "dynamic": bundle.model_path}
                contenders = [Contender(kind, "onnx", {"path": str(path.resolve())}) for kind, path in paths.items()]
                timings = in_turns(contenders, [bundle.manifest.signature.random(1, n)], rounds=rounds, threads=threads)
            table.variants(f"{folder}, 1 x {n} tokens", timings, "fixed")
    table.conditions(rounds, threads)


if __name__ == "__main__":
    main()
