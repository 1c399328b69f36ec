"""Accuracy of a bundle on somebody's labelled texts."""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from coda_compile.bench.statistics import Interval
from coda_compile.errors import CodaError
from coda_compile.predict import predict
from coda_targets import Bundle

_TASK = "sequence-classification"


@dataclass(frozen=True)
class Accuracy:
    """How many texts a classifier labelled right.

    Attributes:
        name: of the file.
        labels: in the model's order.
        confusion: texts by (true label, predicted label).
    """

    name: str
    labels: tuple[str, ...]
    confusion: dict[tuple[str, str], int]

    @property
    def texts(self) -> int:
        """How many were read."""
        return sum(self.confusion.values())

    @property
    def share(self) -> Interval:
        """Right over all, with its 95 % Wilson interval."""
        right = sum(count for (true, predicted), count in self.confusion.items() if true == predicted)
        return wilson(right, self.texts)


def wilson(right: int, n: int) -> Interval:
    """A share with its 95 % score interval (Wilson 1927)."""
    z, share = 1.96, right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def measure(bundle: Bundle, path: Path) -> Accuracy:
    """Label every text of a CSV file and compare.

    Args:
        path: with the columns ``text`` and ``label``; a label is a name of the model's, or its number.

    Raises:
        CodaError: a bundle that classifies no texts, or a file that is not as described.
    """
    manifest = bundle.manifest
    check_task(manifest.task)
    rows = list(read_rows(path, manifest.labels))
    results = predict(bundle, [text for text, _ in rows])
    pairs = ((true, record["label"]) for (_, true), (_, record, _) in zip(rows, results, strict=True))
    return Accuracy(path.name, manifest.labels, dict(Counter(pairs)))


def check_task(task: str) -> None:
    """Refuse what has no accuracy.

    Raises:
        CodaError: a task other than classifying texts.
    """
    if task != _TASK:
        raise CodaError(f"--data measures the accuracy of {_TASK}, and this model does {task}")


def read_rows(path: Path, labels: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Text and label of every row.

    Raises:
        CodaError: what is wrong with the file, and where.
    """
    for row, line in _rows(path, ("text", "label")):
        yield row["text"] or "", _label(row["label"] or "", labels, f"line {line} of {path}")


def read_texts(path: Path) -> list[str]:
    """The text of every row, whatever its label.

    Raises:
        CodaError: what is wrong with the file.
    """
    return [row["text"] or "" for row, _ in _rows(path, ("text",))]


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[dict[str, str | None], int]]:
    """Every row with the number of its last line."""
    wanted = f"the column{'s' if len(columns) > 1 else ''} {' and '.join(columns)}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = sorted(set(columns) - set(reader.fieldnames or ()))
            if missing:
                raise CodaError(f"{path} has no column {missing[0]!r}: give a CSV file with {wanted}")
            empty = True
            for row in reader:
                empty = False
                yield row, reader.line_num
            if empty:
                raise CodaError(f"{path} has no rows below its header")
    except FileNotFoundError:
        raise CodaError(f"{path} does not exist: give a CSV file with {wanted}") from None
    except UnicodeDecodeError:
        raise CodaError(f"{path} is not UTF-8 text: convert it, for example with iconv") from None
    except csv.Error as error:
        raise CodaError(f"{path} is no CSV file: {error}") from None


def _label(text: str, labels: tuple[str, ...], where: str) -> str:
    if text in labels:
        return text
    if text.isdecimal() and int(text) < len(labels):
        return labels[int(text)]
    raise CodaError(f"{where} has the label {text!r}: this model knows {', '.join(labels)}")
