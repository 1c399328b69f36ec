"""What labels of a file are: classes, sets of classes, or numbers; and which texts are held out of each."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coda_compile.errors import CodaError
from coda_compile.text_files import Row, listed
from coda_targets.manifest import MULTI_LABEL, REGRESSION, SINGLE_LABEL


@dataclass(frozen=True)
class Labels:
    """Labels of texts.

    Attributes:
        problem_type: one of ``PROBLEM_TYPES``.
        names: of the classes; of a regression the one of its number.
        values: of each text the index of its class, a 1.0 or 0.0 for each class, or its number.
    """

    problem_type: str
    names: tuple[str, ...]
    values: list[int] | list[list[float]] | list[float]

    def held_out(self, count: int, seed: int) -> list[int]:
        """Places of texts to hold out, drawn by a seed: of each class its share, and not the only text of one.

        Sets of classes count as their rarest one. Numbers are not parted into classes.
        """
        kinds = self._kinds()
        order = [int(i) for i in np.random.default_rng(seed).permutation(len(kinds))]
        seen: set[int] = set()
        spare = [i for i in order if kinds[i] in seen or seen.add(kinds[i])]  # type: ignore[func-returns-value]
        spare.sort(key=lambda i: kinds[i])  # stable: in the order drawn within a class
        return sorted(spare[i * len(spare) // count] for i in range(min(count, len(spare))))

    def _kinds(self) -> list[int]:
        if self.problem_type == REGRESSION:
            return [0] * len(self.values)
        if self.problem_type == SINGLE_LABEL:
            return [int(value) for value in self.values]  # type: ignore[arg-type]
        held = np.array(self.values)  # [texts, classes]
        often = held.sum(0)
        rarest = np.where(held > 0, often, np.inf).argmin(1)
        return [int(which) if some else -1 for which, some in zip(rarest, held.max(1) > 0, strict=True)]


def read_labels(rows: Sequence[Row], path: Path, problem_type: str | None) -> Labels:
    """Labels of rows, told apart by what they look like where nothing is said.

    JSON lists of names are several classes of a text. Numbers of which one has a fraction are numbers to predict; whole
    ones are names of classes, as all else is.

    Args:
        path: of their file, for messages.
        problem_type: one of ``PROBLEM_TYPES``, where it is known.

    Raises:
        CodaError: a label that is none, one of another kind than the others, or nothing to learn; and where it stands.
    """
    for row in rows:
        if not row.label.strip() or math.isnan(_number(row.label) or 0.0):
            raise CodaError(f"{row.where} has no label, but {row.label!r}: write one, or leave the text out")
    if problem_type is None:
        problem_type = _looks_like(rows)
    read = {SINGLE_LABEL: _classes, MULTI_LABEL: _sets, REGRESSION: _numbers}[problem_type]
    return read(rows, path)


def _looks_like(rows: Sequence[Row]) -> str:
    if any(listed(row.label) is not None for row in rows):
        return MULTI_LABEL
    numbers = [_number(row.label) for row in rows]
    fractions = any(number is not None and not number.is_integer() for number in numbers)
    return REGRESSION if fractions and None not in numbers else SINGLE_LABEL


def _classes(rows: Sequence[Row], path: Path) -> Labels:
    given = [row.label.strip() for row in rows]
    names = _sorted(set(given))
    if len(names) == 1:
        raise CodaError(
            f"all {len(rows)} texts in {path} have the label {names[0]!r}: give texts of two classes or more"
        )
    if 2 * len(names) > len(rows):
        raise CodaError(
            f"{path} has {len(names)} different labels for {len(rows)} texts, too many for classes: name the column "
            "that holds labels, or say that they are numbers to predict"
        )
    places = {name: i for i, name in enumerate(names)}
    return Labels(SINGLE_LABEL, names, [places[name] for name in given])


def _sets(rows: Sequence[Row], path: Path) -> Labels:
    given: list[set[str]] = []
    for row in rows:
        if (named := listed(row.label)) is None:
            raise CodaError(
                f'{row.where} has the label {row.label!r}, which is no JSON list: write ["a", "b"], and [] for none'
            )
        given.append(set(named))
    names = _sorted(set().union(*given))
    counts = Counter(name for some in given for name in some)
    if len(names) == 1:
        raise CodaError(f"{path} names no label but {names[0]!r}: give texts of two classes, as in yes and no, instead")
    if not names or all(counts[name] == len(rows) for name in names):
        raise CodaError(f"all {len(rows)} texts in {path} have the same labels: give texts of several")
    return Labels(MULTI_LABEL, names, [[float(name in some) for name in names] for some in given])


def _numbers(rows: Sequence[Row], path: Path) -> Labels:
    numbers = []
    for row in rows:
        number = _number(row.label)
        if number is None or not math.isfinite(number):
            raise CodaError(f"{row.where} has the label {row.label!r}, and numbers are to be predicted: write one")
        numbers.append(number)
    if len(set(numbers)) == 1:
        raise CodaError(f"all {len(rows)} texts in {path} have the label {numbers[0]:g}: give texts of several")
    return Labels(REGRESSION, ("LABEL_0",), numbers)


def _sorted(names: set[str]) -> tuple[str, ...]:
    """Numbers by their size, all else by the alphabet."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None
