"""What a routed model is worth: texts that no fit has seen, with what the dense model says of them."""

import warnings
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from coda_compile.bundling.writer import label_names
from coda_compile.errors import CompileWarning, OptionError
from coda_compile.statistics import Interval
from coda_compile.text_files import Row, label_numbers, label_sets
from coda_compile.text_files import label_names as named_labels
from coda_compile.tune.agreement import (
    LABEL,
    LABELS,
    MAIN_FIGURES,
    NUMBERS,
    Answer,
    Figures,
    accuracy,
    agreement,
    answers,
    kind_of,
    points_lost,
)
from coda_compile.tune.texts import Batch, median_length
from coda_models.config import Reduction
from coda_models.cost import layer_multiply_adds
from coda_models.model import CodaModel
from coda_targets.fidelity import Fidelity, Figure


@dataclass(frozen=True)
class Routed:
    """A routed model in its file, and what it is worth on the held-out texts.

    Attributes:
        reduction: in text; one a layer, with commas, where they differ.
        agreement: with the dense model, by name.
        accuracy: against labels, by name; empty without.
        lost: points of accuracy below the dense model, of classifiers with labels.
        share: of the dense model's multiply-adds in its layers, on these texts.
        seconds: that the fit took, with the routers' where several models share them.
    """

    reduction: str
    path: Path
    agreement: Figures
    accuracy: Figures
    lost: Interval | None
    share: float
    seconds: float
    fitted: Figures | None = None


class HeldOut:
    """Texts with what the dense model says of them.

    Args:
        dense: run at r = 1.
        batches: of the texts.
        labels: of the texts, as ``labels_of`` gives them; none where there are none.
    """

    def __init__(self, dense: CodaModel, batches: Sequence[Batch], labels: Sequence[Answer] = ()) -> None:
        self.kind = kind_of(dense)
        self._batches, self._labels = batches, labels
        self._dense: list[Answer] = answers(dense, batches)
        self.accuracy = accuracy(self.kind, labels, self._dense) if labels else {}

    def __len__(self) -> int:
        return len(self._dense)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [n for batch in self._batches for n in batch.lengths()]

    @property
    def tokens(self) -> int:
        """Of the median text."""
        return median_length(self._batches)

    @property
    def figure(self) -> str:
        """Of agreement, by name, the one that a budget is of."""
        return MAIN_FIGURES[self.kind]

    def agreement(self, routed: CodaModel) -> Figures:
        """Of a model that was made from the dense one, by name."""
        return agreement(self.kind, self._dense, answers(routed, self._batches))

    def measure(
        self, routed: CodaModel, path: Path, reduction: str, seconds: float, fitted: Figures | None = None
    ) -> Routed:
        """What a model is worth that was made from the dense one; arguments as ``Routed`` has them."""
        given = answers(routed, self._batches)
        return Routed(
            reduction=reduction,
            path=path,
            agreement=agreement(self.kind, self._dense, given),
            accuracy=accuracy(self.kind, self._labels, given) if self._labels else {},
            lost=points_lost(self._labels, self._dense, given) if self._labels and self.kind == LABEL else None,
            share=_work(routed, self.lengths) / _work(routed, self.lengths, 1),
            seconds=seconds,
            fitted=fitted,
        )

    def fidelity(self, found: Routed, fitted_on: int) -> Fidelity | None:
        """What was measured, to be kept with the model.

        Args:
            fitted_on: how many texts.
        """
        figures = []
        for name, value in (found.agreement | found.accuracy).items():
            dense = self.accuracy[name].middle if name in self.accuracy else None
            if all(map(isfinite, (*astuple(value), 0.0 if dense is None else dense))):
                figures.append(Figure(name, value.middle, value.low, value.high, dense))
        return Fidelity(tuple(figures), len(self), self.tokens, fitted_on) if figures else None

    def warn_of_one_class(self) -> None:
        """Say so where the dense model tells nothing apart."""
        if self.kind == LABEL and len({float(answer[0]) for answer in self._dense}) == 1:
            warnings.warn(
                f"the model gives the same label to all {len(self)} held-out texts, so that agreement says little: "
                "give texts of every class",
                CompileWarning,
                stacklevel=2,
            )


def labels_of(model: CodaModel, rows: Sequence[Row]) -> list[Answer]:
    """Of texts in a file, in the form of answers.

    Raises:
        CodaError: a label that the model does not know, or a model whose answers have no such labels.
    """
    kind, names = kind_of(model), label_names(model)
    if kind == NUMBERS and len(names) == 1:
        return [np.array([number]) for number in label_numbers(rows)]
    if kind == LABEL:
        return [np.array([float(names.index(name))]) for name in named_labels(rows, names)]
    if kind == LABELS:
        return [np.array([float(name in given) for name in names]) for given in label_sets(rows, names)]
    raise OptionError(
        "{label_column} is for models that give a text labels or one number, and this one does {task}: leave it out",
        task=model.coda_config.task,
    )


def _work(model: CodaModel, lengths: Sequence[int], reduction: Reduction | None = None) -> int:
    """Multiply-adds of all layers for texts of some lengths."""
    return sum(sum(layer_multiply_adds(model, n, reduction)) for n in lengths)
