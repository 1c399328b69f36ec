"""A second text set for the recipe: CLINC150's queries, ten to a text, and the intent of the first as its label.

python benchmarks/join_queries.py --queries ../shared/data/clinc150.json --out queries.csv

Most of a text is of no use, so a router has something to find. Every query stands in one text alone, whose ten are
drawn by a fixed seed. examples/train_reviews.py trains on the file as it is.
"""

import csv
import json
import random
from pathlib import Path

import click

_TOGETHER = 10


def join(queries: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Text and label of every ten queries, shuffled; a rest of less than ten is left out."""
    shuffled = random.Random(0).sample(queries, len(queries))
    tens = [shuffled[start : start + _TOGETHER] for start in range(0, len(shuffled) - _TOGETHER + 1, _TOGETHER)]
    return [(". ".join(text for text, _ in ten), ten[0][1]) for ten in tens]


@click.command(help=__doc__)
@click.option("--queries", type=click.Path(exists=True, path_type=Path), required=True, help="CLINC150's JSON file.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="CSV file with the columns text and label.")
def main(queries: Path, out: Path) -> None:
    parts = json.loads(queries.read_text("utf-8"))
    texts = join([(text, intent) for part in ("train", "val", "test") for text, intent in parts[part]])
    with out.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows(texts)
    click.echo(f"{out}: {len(texts)} texts, {len({label for _, label in texts})} labels")


if __name__ == "__main__":
    main()
