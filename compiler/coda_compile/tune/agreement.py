"""How far the answers of a routed model are from the dense one's, and from labels, on texts that no fit has seen."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from coda_compile.bundling.writer import label_names, logits_of
from coda_compile.inspect.accuracy import wilson
from coda_compile.statistics import Interval, bootstrap
from coda_compile.tune.texts import Batch
from coda_models.model import CodaModel
from coda_targets.manifest import MULTI_LABEL, REGRESSION

Answer = NDArray[np.float64]
Figures = dict[str, Interval]
# What a model says of a text: one label of several, any of them, a tag for each token, numbers, an embedding.
LABEL, LABELS, TAGS, NUMBERS, EMBEDDING = "label", "labels", "tags", "numbers", "embedding"
MAIN_FIGURES = {  # of agreement, from 0 to 1
    LABEL: "same label",
    LABELS: "same labels",
    TAGS: "same tags",
    NUMBERS: "R²",
    EMBEDDING: "cosine",
}
_NEIGHBOURS = 10


def kind_of(model: CodaModel) -> str:
    """What a model says of a text."""
    if model.head is None:
        return EMBEDDING
    if model.coda_config.task == "token-classification":
        return TAGS
    logits = logits_of(model)
    if len(label_names(model)) == 1 or (logits is not None and logits.problem_type == REGRESSION):
        return NUMBERS
    return LABELS if logits is not None and logits.problem_type == MULTI_LABEL else LABEL


@torch.inference_mode()
def answers(model: CodaModel, batches: Sequence[Batch]) -> list[Answer]:
    """What a model says of each text: [1] of a label, [labels] of several and of numbers, [words] of tags, [width]."""
    kind = kind_of(model)
    found: dict[int, Answer] = {}
    for batch in batches:
        output = model(**batch.inputs)
        given = output.sentence_embedding if output.logits is None else output.logits
        if kind in (LABEL, TAGS):
            given = given.argmax(-1)
        elif kind == LABELS:
            given = given > 0
        for i, values, words in zip(batch.places, given.double().numpy(), batch.words.numpy(), strict=True):
            found[i] = values[words] if kind == TAGS else np.atleast_1d(values)
    return [found[i] for i in range(len(found))]


def agreement(kind: str, dense: Sequence[Answer], routed: Sequence[Answer]) -> Figures:
    """Figures by name of a routed model's answers against the dense one's, with 95 % intervals over texts."""
    if kind in (LABEL, LABELS):
        same = sum(map(np.array_equal, dense, routed))
        return {MAIN_FIGURES[kind]: wilson(same, len(dense))}
    if kind == TAGS:
        return {MAIN_FIGURES[kind]: _same_tags(dense, routed)}
    wanted, given = np.stack(dense), np.stack(routed)
    return _numbers(wanted, given) if kind == NUMBERS else _embeddings(wanted, given)


def accuracy(kind: str, labels: Sequence[Answer], given: Sequence[Answer]) -> Figures:
    """Figures by name of a model's answers against labels, which have the form of answers."""
    truth, values = np.stack(labels), np.stack(given)
    if kind == NUMBERS:
        return {f"{name} with labels": figure for name, figure in _numbers(truth, values).items()}
    right = wilson(int((truth == values).all(1).sum()), len(truth))
    if kind == LABELS:
        return {
            "micro F1": bootstrap(lambda some: _micro_f1(truth[some], values[some]), len(truth)),
            "exact set": right,
        }
    return {"accuracy": right}


def points_lost(labels: Sequence[Answer], dense: Sequence[Answer], routed: Sequence[Answer]) -> Interval:
    """Points of accuracy, of a hundred, that a routed model is below the dense one on the same texts."""
    truth = np.stack(labels)
    lost = 100.0 * ((np.stack(dense) == truth).astype(float) - (np.stack(routed) == truth))[:, 0]  # [texts]
    return bootstrap(lambda some: float(lost[some].mean()), len(lost))


def _micro_f1(truth: Answer, given: Answer) -> float:
    """Over all labels of all texts, 1 where there are none. [texts, labels] of 0 and 1"""
    named = (truth + given).sum()
    return float(2 * (truth * given).sum() / named) if named else 1.0


def _same_tags(dense: Sequence[Answer], routed: Sequence[Answer]) -> Interval:
    """Over words of all texts; the interval is one over texts, whose words are no independent ones."""
    same = np.array([(one == other).sum() for one, other in zip(dense, routed, strict=True)])
    words = np.array([len(one) for one in dense])
    return bootstrap(lambda some: float(same[some].sum() / max(1, words[some].sum())), len(words))


def _numbers(wanted: Answer, given: Answer) -> Figures:
    """Rank correlation (Spearman 1904) and explained variance, mean over outputs. wanted, given: [texts, outputs]"""

    def correlation(some: NDArray[np.int64]) -> float:
        pairs = zip(wanted[some].T, given[some].T, strict=True)
        return float(np.mean([_correlation(_ranks(x), _ranks(y)) for x, y in pairs]))

    def explained(some: NDArray[np.int64]) -> float:
        x, y = wanted[some], given[some]
        spread = ((x - x.mean(0)) ** 2).sum(0)
        return float(np.mean(1 - ((x - y) ** 2).sum(0) / np.where(spread > 0, spread, np.inf)))

    return {"rank correlation": bootstrap(correlation, len(wanted)), "R²": bootstrap(explained, len(wanted))}


def _ranks(x: Answer) -> Answer:
    """Ranks of values, those of ties their mean. [n]"""
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def _correlation(x: Answer, y: Answer) -> float:
    """0 where one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else 0.0


def _embeddings(wanted: Answer, given: Answer) -> Figures:
    """Cosine with the dense embedding, and how many of its nearest neighbours stay. [texts, width] each"""
    wanted, given = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (wanted, given))
    cosines = (wanted * given).sum(1)
    k = min(_NEIGHBOURS, len(wanted) - 1)
    near = [_nearest(x, k) for x in (wanted, given)]
    kept = np.array([len(set(one) & set(other)) / k for one, other in zip(*near, strict=True)])
    return {
        name: bootstrap(lambda some, values=values: float(values[some].mean()), len(values))  # type: ignore[misc]
        for name, values in (("cosine", cosines), (f"same {k} neighbours", kept))
    }


def _nearest(x: Answer, k: int) -> NDArray[np.int64]:
    """The k nearest others of each by cosine. [texts, k]"""
    near = x @ x.T
    np.fill_diagonal(near, -np.inf)
    return np.argsort(-near, axis=1, kind="stable")[:, :k]
