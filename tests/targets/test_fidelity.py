"""What a routed model keeps: as text, and what is no figure."""

import pytest

from coda_targets.fidelity import Fidelity, Figure

FOUND = Fidelity(
    (Figure("same label", 0.988, 0.98, 0.994), Figure("accuracy", 0.969, 0.959, 0.979, 0.974)), 1200, 104, 400
)


def test_shares_are_told_in_per_cent_and_the_dense_model_beside_them():
    assert str(FOUND) == (
        "same label 98.8% [98.0%, 99.4%]; accuracy 96.9% [95.9%, 97.9%] (dense 97.4%); "
        "1,200 held-out texts of 104 tokens at the median"
    )


def test_what_is_no_share_is_a_number():
    assert str(Figure("cosine", 0.8664, 0.86, 0.87)) == "cosine 0.866 [0.860, 0.870]"


@pytest.mark.parametrize(
    "changed", [{"value": float("nan")}, {"dense": float("inf")}, {"name": "\x1b[2J"}, {"name": ""}]
)
def test_what_is_no_figure(changed: dict[str, object]):
    with pytest.raises(ValueError, match="figure"):
        Figure(**{"name": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields", [((), 1, 1, 1), (FOUND.figures * 9, 1, 1, 1), (FOUND.figures, 0, 1, 1), (FOUND.figures, 1, 1, -1)]
)
def test_what_was_not_measured(fields: tuple[tuple[Figure, ...], int, int, int]):
    with pytest.raises(ValueError, match=r"figures, not 1 to 16|counted from 1"):
        Fidelity(*fields)
