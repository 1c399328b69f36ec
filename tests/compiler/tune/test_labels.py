"""What labels are is told by what they look like; and of each class a share is held out, never the only text."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coda_compile.errors import CodaError
from coda_compile.text_files import Row
from coda_compile.tune.labels import Labels, read_labels
from coda_targets.manifest import MULTI_LABEL, REGRESSION, SINGLE_LABEL

FILE = Path("texts.csv")


def read(labels: Sequence[Any], problem_type: str | None = None) -> Labels:
    cells = [label if isinstance(label, str) else json.dumps(label) for label in labels]
    rows = [Row(f"t{i}", cell, f"line {i + 2} of {FILE}") for i, cell in enumerate(cells)]
    return read_labels(rows, FILE, problem_type)


@pytest.mark.parametrize(
    ("labels", "problem_type", "names", "values"),
    [
        (["b", "a", "b", "a"], SINGLE_LABEL, ("a", "b"), [1, 0, 1, 0]),
        (["10", "9", "10", "9"], SINGLE_LABEL, ("9", "10"), [1, 0, 1, 0]),
        (["1.0", "0.0", "1.0", "0.0"], SINGLE_LABEL, ("0.0", "1.0"), [1, 0, 1, 0]),
        (["1", "0.5", "-2e0"], REGRESSION, ("LABEL_0",), [1.0, 0.5, -2.0]),
        (["0.5", "x", "0.5", "x"], SINGLE_LABEL, ("0.5", "x"), [0, 1, 0, 1]),
        ([["b", "a"], [], ["b"]], MULTI_LABEL, ("a", "b"), [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]),
        ([[2, 10], [2]], MULTI_LABEL, ("2", "10"), [[1.0, 1.0], [1.0, 0.0]]),
        (["[a]", "b", "[a]", "b"], SINGLE_LABEL, ("[a]", "b"), [0, 1, 0, 1]),
    ],
)
def test_labels_are_what_they_look_like(labels: Any, problem_type: str, names: Any, values: Any):
    assert read(labels) == Labels(problem_type, names, values)


def test_whole_numbers_are_numbers_where_it_is_said():
    assert read(["3", "1", "1"], REGRESSION) == Labels(REGRESSION, ("LABEL_0",), [3.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("labels", "problem_type", "message"),
    [
        (["a", " ", "b"], None, "^line 3 of texts.csv has no label, but ' ': write one, or leave the text out$"),
        (["0.5", "nan"], None, "line 3 of texts.csv has no label, but 'nan'"),
        (["a", "NaN"], None, "line 3 of texts.csv has no label, but 'NaN'"),
        (
            ["0.5", "inf"],
            REGRESSION,
            "line 3 of texts.csv has the label 'inf', and numbers are to be predicted: write one",
        ),
        (["0.5", "x"], REGRESSION, "line 3 of texts.csv has the label 'x', and numbers are to be predicted"),
        (["0.5", "0.5"], None, "all 2 texts in texts.csv have the label 0.5: give texts of several"),
        (["a", "a"], None, "all 2 texts in texts.csv have the label 'a': give texts of two classes or more"),
        (["a", "b", "c"], None, "texts.csv has 3 different labels for 3 texts, too many for classes: name the column"),
        ([["a", "b"], "a"], None, r"line 3 of texts.csv has the label 'a', which is no JSON list: write \[\"a\", \"b"),
        (["a", "b"], MULTI_LABEL, "line 2 of texts.csv has the label 'a', which is no JSON list"),
        ([["a"], []], None, "texts.csv names no label but 'a': give texts of two classes, as in yes and no, instead"),
        ([["a", "b"], ["a", "b"]], None, "all 2 texts in texts.csv have the same labels: give texts of several"),
        ([[], []], None, "all 2 texts in texts.csv have the same labels"),
    ],
)
def test_what_teaches_nothing_is_one_sentence(labels: Any, problem_type: str | None, message: str):
    with pytest.raises(CodaError, match=message):
        read(labels, problem_type)


@settings(deadline=None, max_examples=50)
@given(counts=st.lists(st.integers(1, 40), min_size=2, max_size=8), seed=st.integers(0, 5))
def test_each_class_is_held_out_by_its_share(counts: list[int], seed: int):
    values = [kind for kind, count in enumerate(counts) for _ in range(count)]
    labels = Labels(SINGLE_LABEL, tuple(map(str, range(len(counts)))), values)
    asked = len(values) // 5
    places = labels.held_out(asked, seed)
    assert len(set(places)) == len(places) == min(asked, len(values) - len(counts))
    held = Counter(values[i] for i in places)
    spare = len(values) - len(counts)
    for kind, count in enumerate(counts):
        assert held[kind] < count
        assert abs(held[kind] - (count - 1) * len(places) / max(1, spare)) < 1


def test_the_seed_draws_within_a_class():
    labels = read(["a", "b"] * 50)
    first, again, other = (labels.held_out(20, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert Counter(labels.values[i] for i in first) == {0: 10, 1: 10}


def test_sets_count_as_their_rarest_label():
    labels = read([["often"]] * 40 + [["often", "seldom"]] * 10 + [["often", "once"]] + [[]] * 10)
    held = labels.held_out(12, 0)
    assert 50 not in held  # the only one
    assert sum(40 <= i < 50 for i in held) in (1, 2)
    assert sum(i >= 51 for i in held) in (1, 2)
