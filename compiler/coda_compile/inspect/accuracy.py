"""Accuracy of a bundle on labelled data."""

from collections import Counter
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from coda_compile.inspect.predict import predict
from coda_compile.logits import check_one_label
from coda_compile.statistics import Interval
from coda_compile.text_files import MEASURED, read_rows
from coda_targets import Bundle


@dataclass(frozen=True)
class Accuracy:
    """How many predictions of a classifier are correct.

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
        path: see ``read_rows``.

    Raises:
        CodaError: a bundle that does not choose one label of several for a text, or a file that is not as described.
    """
    manifest = bundle.manifest
    check_one_label(MEASURED, manifest.task, manifest.logits, manifest.labels)
    rows = read_rows(path, manifest.labels)
    results = predict(bundle, [text for text, _ in rows])
    pairs = ((true, record["label"]) for (_, true), (_, record, _) in zip(rows, results, strict=True))
    return Accuracy(path.name, manifest.labels, dict(Counter(pairs)))
