"""What packing gains on batches of real texts: the same model with and without it, at the lengths that texts have.

python benchmarks/ragged_batches.py --model examples/reviews.pt --backbone FOLDER \
    --reviews ../shared/data/movie_reviews.zip --queries ../shared/data/clinc150.json
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from coda_compile import compile
from coda_compile.bench import table
from coda_compile.bench.turns import Contender, in_turns
from coda_compile.errors import CodaError
from coda_compile.statistics import ratio_interval
from coda_targets.modalities.text import TextCodec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import train_reviews


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path), required=True)
@click.option("--backbone", required=True, help="Folder or hub name of the pretrained encoder.")
@click.option("--reviews", type=click.Path(exists=True, path_type=Path), required=True, help="Zip or CSV of texts.")
@click.option("--queries", type=click.Path(exists=True, path_type=Path), required=True, help="CLINC150's JSON file.")
@click.option("--precision", default="fp32", show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--rounds", default=10, show_default=True)
@click.option("--threads", default=0, show_default=True, help="0: all cores.")
def main(
    model: Path, backbone: str, reviews: Path, queries: Path, precision: str, batch: int, rounds: int, threads: int
) -> None:
    texts = {
        "film reviews": train_reviews.split(*train_reviews.read_texts(reviews))[1],
        "CLINC150 queries": [text for text, _ in json.loads(queries.read_text("utf-8"))["test"]],
    }
    random = np.random.default_rng(0)
    table.conditions(rounds, threads)
    with TemporaryDirectory(prefix="coda-ragged-") as folder:
        for reduction in (None, 1):
            try:
                bundles = [
                    compile(
                        model,
                        output=Path(folder) / str(pack),
                        backbone=backbone,
                        reduction=reduction,
                        precision=precision,
                        pack=bool(pack),
                    )
                    for pack in (0, 1)
                ]
            except CodaError as error:
                raise click.ClickException(str(error)) from None
            codec = TextCodec(bundles[0])
            drawn = {name: list(random.choice(some, batch, replace=False)) for name, some in texts.items()}
            drawn["one review"] = drawn["film reviews"][:1]
            inputs = [codec.encode(some).inputs for some in drawn.values()]
            contenders = [Contender.of_bundle(str(i), bundle.folder) for i, bundle in enumerate(bundles)]
            plain, packed = in_turns(contenders, inputs, rounds=rounds, threads=threads).values()
            for i, (name, feed) in enumerate(zip(drawn, inputs, strict=True)):
                gain = ratio_interval(plain.rounds(i), packed.rounds(i))
                lengths = bundles[0].manifest.signature.mask(feed).sum(1)
                click.echo(
                    f"{precision}, r = {bundles[0].manifest.layers[0].reduction}, {name}: {len(lengths)} of "
                    f"{lengths.mean():.0f} tokens, the longest of {lengths.max()}: packed {gain.middle:.2f}x "
                    f"[{gain.low:.2f}, {gain.high:.2f}] as fast"
                )


if __name__ == "__main__":
    main()
