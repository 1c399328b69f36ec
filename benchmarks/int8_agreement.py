"""What int8 costs in accuracy: the held-out reviews through the same model in fp32 and in int8.

python benchmarks/int8_agreement.py --data ../shared/data/movie_reviews.zip --backbone FOLDER
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from coda_compile import compile
from coda_compile.errors import CodaError
from coda_compile.predict import predict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import train_reviews

MODEL = Path(train_reviews.__file__).with_name("reviews.pt")


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="Zip or CSV of texts.")
@click.option("--backbone", required=True, help="Folder or hub name of the pretrained encoder.")
@click.option("--model", type=click.Path(path_type=Path), default=MODEL)
def main(data: Path, backbone: str, model: Path) -> None:
    _, texts, _, labels = train_reviews.split(*train_reviews.read_texts(data))
    answers = {}
    with TemporaryDirectory(prefix="coda-int8-") as folder:
        for precision in ("fp32", "int8"):
            try:
                bundle = compile(model, output=Path(folder) / precision, backbone=backbone, precision=precision)
            except CodaError as error:
                raise click.ClickException(str(error)) from None
            answers[precision] = [record["label"] for _, record, _ in predict(bundle, texts, batch=1)]
    for precision, given in answers.items():
        click.echo(f"{precision}: {sum(a == b for a, b in zip(given, labels, strict=True)) / len(labels):.2%}")
    same = sum(a == b for a, b in zip(*answers.values(), strict=True)) / len(labels)
    click.echo(f"the same answer: {same:.2%} of {len(labels)} texts")


if __name__ == "__main__":
    main()
