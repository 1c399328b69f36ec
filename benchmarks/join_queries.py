"""A second text set for the recipe: CLINC150's queries, ten to a text, and the intent of the first as its label.

python benchmarks/join_queries.py --queries ../shared/data/clinc150.json --out queries.csv

Most of a text is of no use, so a router has something to find. Every query stands in one text alone, whose ten are
drawn by a fixed seed. examples/train_reviews.py trains on the file as it is.
"""

import json
import random
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import train_reviews

_TOGETHER = 10


Query = tuple[str, str]  # text and intent


def join(queries: list[Query]) -> list[Query]:
    """Text and label of every ten queries, shuffled; a rest of less than ten is left out."""
    return [joined(ten) for ten in _tens(queries)]


def queries_of(queries: list[Query], texts: list[str]) -> list[Query]:
    """Those that some of the joined texts hold."""
    given = set(texts)
    return [query for ten in _tens(queries) if joined(ten)[0] in given for query in ten]


def drawn(queries: list[Query], count: int, together: int = _TOGETHER) -> list[Query]:
    """Other texts of queries, each with a first query of its own."""
    draw = random.Random(0)
    firsts = draw.sample(queries, min(count, len(queries)))
    return [joined([first, *draw.sample(queries, together - 1)]) for first in firsts]


def joined(queries: list[Query]) -> Query:
    """One text, with the label of the first query."""
    return ". ".join(text for text, _ in queries), queries[0][1]


def _tens(queries: list[Query]) -> list[list[Query]]:
    shuffled = random.Random(0).sample(queries, len(queries))
    return [shuffled[start : start + _TOGETHER] for start in range(0, len(shuffled) - _TOGETHER + 1, _TOGETHER)]


def read(path: Path) -> list[Query]:
    """Every query of CLINC150's JSON file that has an intent."""
    parts = json.loads(path.read_text("utf-8"))
    return [(text, intent) for part in ("train", "val", "test") for text, intent in parts[part]]


@click.command(help=__doc__)
@click.option("--queries", type=click.Path(exists=True, path_type=Path), required=True, help="CLINC150's JSON file.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="CSV file with the columns text and label.")
def main(queries: Path, out: Path) -> None:
    texts = join(read(queries))
    train_reviews.write_texts(out, texts)
    click.echo(f"{out}: {len(texts)} texts, {len({label for _, label in texts})} labels")


if __name__ == "__main__":
    main()
