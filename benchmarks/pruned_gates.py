"""What pruning slots by their gates saves and costs: the held-out reviews through a model pruned at several thresholds.

python benchmarks/pruned_gates.py --data ../shared/data/movie_reviews.zip --backbone FOLDER

Gates are looked at in the training texts. Then every pruned model is timed against the whole one, in turns.
"""

import csv
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from coda_compile import compile
from coda_compile.bench import table
from coda_compile.bench.turns import Contender, in_turns
from coda_compile.errors import CodaError
from coda_compile.inspect.predict import predict
from coda_compile.prepare.pruning import read_pruning

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import train_reviews

MODEL = Path(train_reviews.__file__).with_name("reviews.pt")
WHOLE = "whole"


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="Zip or CSV of texts.")
@click.option("--backbone", required=True, help="Folder or hub name of the pretrained encoder.")
@click.option("--model", type=click.Path(path_type=Path), default=MODEL)
@click.option("--precision", default="int8", show_default=True, type=click.Choice(["fp32", "int8"]))
@click.option("--threshold", "thresholds", multiple=True, type=float, default=(0.05, 0.2, 0.5), show_default=True)
@click.option("--tokens", default=512, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(4))
def main(
    data: Path,
    backbone: str,
    model: Path,
    precision: str,
    thresholds: tuple[float, ...],
    tokens: int,
    rounds: int,
) -> None:
    known, texts, _, labels = train_reviews.split(*train_reviews.read_texts(data))
    whole: list[str] = []
    with TemporaryDirectory(prefix="coda-pruned-") as folder:
        calibration = Path(folder) / "known.csv"
        with calibration.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text"], *([text] for text in known)])
        contenders = []
        for threshold in (None, *thresholds):
            name = WHOLE if threshold is None else f"pruned under {threshold:g}"
            texts_of = None if threshold is None else calibration
            try:
                bundle = compile(
                    model,
                    output=Path(folder) / name.replace(" ", "-"),
                    backbone=backbone,
                    precision=precision,
                    calibration=texts_of,
                    prune_gates=threshold,
                )
            except CodaError as error:
                click.echo(f"{name}: {error}")
                continue
            given = [record["label"] for _, record, _ in predict(bundle, texts, batch=1)]
            whole = whole or given
            right, same = (
                sum(a == b for a, b in zip(given, wanted, strict=True)) / len(labels) for wanted in (labels, whole)
            )
            click.echo(f"{name}: {right:.2%} right, {same:.2%} as whole")
            if threshold is not None:
                click.echo(f"  {read_pruning(bundle.folder)}")
            contenders.append(Contender.of_bundle(name, bundle.folder))
        timings = in_turns(contenders, [bundle.manifest.signature.random(1, tokens)], rounds=rounds)
    table.variants(f"1 x {tokens} tokens, {precision}", timings, WHOLE, 0)
    table.conditions(rounds, 0)


if __name__ == "__main__":
    main()
