"""What precision costs: the held-out reviews through the same model in every precision of the target.

python benchmarks/precision_agreement.py --data ../shared/data/movie_reviews.zip --backbone FOLDER

Precisions that need it are calibrated with the training texts.
"""

import csv
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from coda_compile import compile
from coda_compile.backends import get_backend
from coda_compile.errors import CodaError
from coda_compile.inspect.predict import predict
from coda_compile.precision import get_precision
from coda_targets.runtimes import DEFAULT_TARGET

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import train_reviews

MODEL = Path(train_reviews.__file__).with_name("reviews.pt")


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="Zip or CSV of texts.")
@click.option("--backbone", required=True, help="Folder or hub name of the pretrained encoder.")
@click.option("--model", type=click.Path(path_type=Path), default=MODEL)
@click.option("--target", default=DEFAULT_TARGET, show_default=True)
def main(data: Path, backbone: str, model: Path, target: str) -> None:
    known, texts, _, labels = train_reviews.split(*train_reviews.read_texts(data))
    exact: list[str] = []
    with TemporaryDirectory(prefix="coda-precision-") as folder:
        calibration = Path(folder) / "known.csv"
        with calibration.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text"], *([text] for text in known)])
        for precision in get_backend(target).precisions:
            try:
                bundle = compile(
                    model,
                    target,
                    output=Path(folder) / precision,
                    backbone=backbone,
                    precision=precision,
                    calibration=calibration if get_precision(precision).calibrated else None,
                )
            except CodaError as error:
                raise click.ClickException(str(error)) from None
            given = [record["label"] for _, record, _ in predict(bundle, texts, batch=1)]
            exact = exact or given
            right, same = (
                sum(a == b for a, b in zip(given, wanted, strict=True)) / len(labels) for wanted in (labels, exact)
            )
            size = sum(file.bytes for file in bundle.manifest.files)
            click.echo(f"{precision}: {right:.2%} right, {same:.2%} as in fp32, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
