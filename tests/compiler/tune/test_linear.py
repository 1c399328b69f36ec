"""The linear baseline learns what words say, of every kind of label, and nothing else."""

import random
from typing import Any

import numpy as np
import pytest

from coda_compile.tune.linear import linear_figures


def texts(count: int) -> list[str]:
    draw = random.Random(count)
    return [" ".join(draw.choices(["plot", "film", "scene", "actor", "score"], k=6)) for _ in range(count)]


@pytest.mark.parametrize(
    ("kind", "figure", "label"),
    [
        ("label", "accuracy", lambda text: text.count("plot") > 1),
        ("labels", "micro F1", lambda text: [float("plot" in text), float("film" in text), 1.0]),
        ("numbers", "R² with labels", lambda text: 100.0 * text.count("plot")),
    ],
)
@pytest.mark.parametrize("paired", [False, True])
def test_words_are_learned(kind: str, figure: str, label: Any, paired: bool):
    some = texts(200)
    given: list[Any] = [(text, "and so on") for text in some] if paired else some
    labels = [label(text) for text in some]
    wanted = [np.atleast_1d(np.array(value, dtype=float)) for value in labels[150:]]
    found = linear_figures(kind, given[:150], given[150:], labels[:150], wanted)
    assert found is not None
    assert found[figure].middle > 0.8
