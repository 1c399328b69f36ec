"""Figures of agreement against plain definitions, and on answers whose figure is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from tests.compiler.tune.words import random_texts
from tests.conftest import tiny_backbone, tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile.text_files import Row
from coda_compile.tune import agreement as figures
from coda_compile.tune.texts import batches
from coda_models import CodaConfig, convert

SEVERAL = "multi_label_classification"


def answered(*values: float | list[float]) -> list[figures.Answer]:
    return [np.atleast_1d(np.array(value, float)) for value in values]


@pytest.mark.parametrize(
    ("task", "problem_type", "labels", "kind"),
    [
        ("sequence-classification", None, 3, figures.LABEL),
        ("sequence-classification", SEVERAL, 3, figures.LABELS),
        ("sequence-classification", "regression", 3, figures.NUMBERS),
        ("sequence-classification", None, 1, figures.NUMBERS),
        ("token-classification", None, 3, figures.TAGS),
        ("feature-extraction", None, 3, figures.EMBEDDING),
    ],
)
def test_answers_stand_in_the_order_of_the_texts(
    task: str, problem_type: str | None, labels: int, kind: str, tokenizer: PreTrainedTokenizerFast
):
    backbone = tiny_backbone("bert", task)
    backbone.config.problem_type = problem_type
    if labels == 1:
        backbone.config.num_labels = 1
        backbone.classifier = type(backbone.classifier)(32, 1)
    model = convert(backbone, CodaConfig(reduction=1, bottleneck=0, task=task))
    assert figures.kind_of(model) == kind
    rows = [Row(text, "", "") for text in random_texts(40)]
    together = figures.answers(model, batches(rows, tokenizer, model.signature))
    alone = [figures.answers(model, batches([row], tokenizer, model.signature))[0] for row in rows]
    for one, other, row in zip(together, alone, rows, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        width = {figures.LABEL: 1, figures.TAGS: len(str(row.text).split()), figures.EMBEDDING: 32}
        assert len(one) == width.get(kind, labels)


def test_shares_of_texts_and_of_words():
    assert figures.agreement("label", answered(0, 1, 2, 1), answered(0, 1, 1, 1))["same label"].middle == 0.75
    found = figures.agreement("labels", answered([0, 1], [1, 1]), answered([0, 1], [1, 0]))
    assert found["same labels"].middle == 0.5
    tags = figures.agreement("tags", answered([1, 2, 3], [4]), answered([1, 2, 0], [0]))["same tags"]
    assert (tags.middle, tags.low, tags.high) == (0.5, 0.0, pytest.approx(2 / 3))


NUMBERS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=5, max_size=20)


@settings(deadline=None, max_examples=15)
@given(NUMBERS)
def test_rank_correlation_with_ties(pairs: list[tuple[int, int]]):
    wanted, given = ([pair[i] for pair in pairs] for i in (0, 1))
    found = figures.agreement("numbers", answered(*wanted), answered(*given))["rank correlation"]
    known = 0.0 if len(set(wanted)) == 1 or len(set(given)) == 1 else spearmanr(wanted, given).statistic
    assert found.middle == pytest.approx(known, abs=1e-9)
    assert found.low <= found.high


def test_explained_variance():
    found = figures.agreement("numbers", answered(1, 2, 3, 4), answered(1, 2, 3, 5))
    assert found["R²"].middle == pytest.approx(1 - 1 / 5)
    assert figures.agreement("numbers", answered(2, 2, 2), answered(2, 2, 2))["R²"].middle == 1.0


def test_neighbours_of_the_same_embeddings_in_another_scale():
    points = np.random.default_rng(0).normal(size=(30, 8))
    same = figures.agreement("embedding", answered(*points.tolist()), answered(*(3 * points).tolist()))
    assert same["cosine"].middle == pytest.approx(1.0)
    assert same["same 10 neighbours"].middle == 1.0


def test_neighbours_by_brute_force():
    draw = np.random.default_rng(1)
    dense, routed = draw.normal(size=(2, 14, 3))
    found = figures.agreement("embedding", answered(*dense.tolist()), answered(*routed.tolist()))

    def near(points: np.ndarray, i: int) -> set[int]:
        cosine = [points[i] @ p / np.linalg.norm(points[i]) / np.linalg.norm(p) for p in points]
        return set(sorted((j for j in range(14) if j != i), key=lambda j: -cosine[j])[:10])

    kept = [len(near(dense, i) & near(routed, i)) / 10 for i in range(14)]
    assert found["same 10 neighbours"].middle == pytest.approx(np.mean(kept))
    assert list(figures.agreement("embedding", answered(*dense[:4].tolist()), answered(*routed[:4].tolist()))) == [
        "cosine",
        "same 3 neighbours",
    ]


def test_accuracy_and_points_lost_are_of_the_same_texts():
    labels = answered(0, 1, 2, 1)
    dense, routed = answered(0, 1, 2, 0), answered(0, 1, 0, 1)
    assert figures.accuracy("label", labels, dense)["accuracy"].middle == 0.75
    lost = figures.points_lost(labels, dense, routed)
    assert (lost.middle, lost.low < 0 < lost.high) == (0.0, True)
    assert figures.points_lost(labels, dense, answered(1, 0, 0, 0)).middle == 75.0
    assert set(figures.accuracy("numbers", labels, dense)) == {"rank correlation with labels", "R² with labels"}


def test_accuracy_of_several_labels():
    labels = answered([1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1])
    given = answered([1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0])
    found = figures.accuracy("labels", labels, given)
    assert found["exact set"].middle == 0.5
    assert found["micro F1"].middle == pytest.approx(2 * 2 / (4 + 3))
    assert found["micro F1"].low < found["micro F1"].middle < found["micro F1"].high
    nothing = answered([0, 0], [0, 0])
    assert figures.accuracy("labels", nothing, nothing)["micro F1"].middle == 1.0


def test_a_routed_model_agrees_with_itself(tokenizer: PreTrainedTokenizerFast):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    texts = batches([Row(text, "", "") for text in random_texts(12)], tokenizer, model.signature)
    given = figures.answers(model, texts)
    assert figures.agreement("label", given, given)["same label"].middle == 1.0
