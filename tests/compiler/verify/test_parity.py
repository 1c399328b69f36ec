"""The tie-aware comparison catches what is wrong and explains what is not."""

from typing import Any

import numpy as np
import pytest

from coda_compile.errors import VerificationError
from coda_compile.verify.parity import Comparison, Tolerances, margin
from coda_targets.routing import Decision

# Two examples of four tokens, the second with one of padding; r = 2 gives K = 2 slots and k = 2 for both.
MASK = np.array([[True, True, True, True], [True, True, True, False]])
SCORES = np.array([[4.0, 1.0, 3.0, 2.0], [-1.0, 0.5, 0.25, 9.0]], np.float32)
SELECTED = [[0, 2], [1, 2]]
GATES = np.array([[1.0, 0.75], [0.5, 1.0]], np.float32)
TOLERANCES = Tolerances(scores=1e-4, gates=1e-4, outputs=1e-4)


def decision(**changes: Any) -> Decision:
    fields = {"scores": SCORES.copy(), "indices": np.array(SELECTED), "gates": GATES.copy()}
    return Decision(3, **{**fields, "used": np.ones((2, 2), bool), **changes})


def comparison(*, replayed: bool = True) -> Comparison:
    return Comparison("two examples", MASK, TOLERANCES, replayed=replayed)


def test_equal_decisions_pass():
    compared = comparison()
    compared.layer(SCORES, SELECTED, decision())
    compared.gates(GATES, decision())
    result = compared.outputs({"logits": np.ones((2, 3))}, {"logits": np.ones((2, 3))})
    assert (result.scores, result.gates, result.outputs) == (0.0, 0.0, {"logits": 0.0})
    assert (result.ties, result.skipped) == ([], 0)
    assert result.narrowest == pytest.approx(1.0)  # 3 selected, 2 not


def test_noise_within_the_tolerance_is_reported():
    scores = SCORES.copy()
    scores[0, 1] += 2e-4  # allowed 1e-4 times the largest score, 4
    compared = comparison()
    compared.layer(SCORES, SELECTED, decision(scores=scores))
    assert compared.result.scores == pytest.approx(2e-4, rel=0.01)


@pytest.mark.parametrize("error", [5e-4, -5e-4, 1.0, np.nan, np.inf, -np.inf])
def test_wrong_score_is_caught(error: float):
    scores = SCORES.copy()
    scores[1, 0] += error
    with pytest.raises(
        VerificationError, match=r"input 'two examples': scores of layer 3 differ by .* at example 1, position 0"
    ):
        comparison().layer(SCORES, SELECTED, decision(scores=scores))


def test_nan_in_the_reference_is_caught():
    scores = SCORES.copy()
    scores[0, 0] = np.nan
    with pytest.raises(VerificationError, match=r"scores of layer 3 differ"):
        comparison().layer(scores, SELECTED, decision())


@pytest.mark.parametrize("value", [np.nan, -7.0])
def test_scores_of_padding_do_not_matter(value: float):
    scores = SCORES.copy()
    scores[1, 3] = value
    comparison().layer(SCORES, SELECTED, decision(scores=scores))


def test_padding_does_not_widen_the_tolerance():
    expected = SCORES.copy()
    expected[1, 3] = 1e9
    scores = SCORES.copy()
    scores[0, 0] += 0.1
    with pytest.raises(VerificationError, match=r"scores of layer 3"):
        comparison().layer(expected, SELECTED, decision(scores=scores))


def test_wrong_selection_beyond_the_margin():
    with pytest.raises(
        VerificationError,
        match=r"selection of layer 3, example 0 differs at position 3, 1 from the boundary where arithmetic explains",
    ):
        comparison().layer(SCORES, SELECTED, decision(indices=np.array([[0, 3], [1, 2]])))


@pytest.mark.parametrize("replayed", [True, False])
def test_all_scores_wrong_and_only_selection_tells(replayed: bool):
    """A wrong set is refused even when the scores are right, whatever the reference does about ties."""
    with pytest.raises(VerificationError, match=r"selection of layer 3, example 1 differs at position 0"):
        comparison(replayed=replayed).layer(SCORES, SELECTED, decision(indices=np.array([[0, 2], [0, 1]])))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([2, 0], "is not a sorted set of valid positions"),
        ([2, 2], "is not a sorted set of valid positions"),
        ([0, 4], "is not a sorted set of valid positions"),
        ([-2, 0], "is not a sorted set of valid positions"),
    ],
    ids=["unsorted", "repeated", "beyond", "negative"],
)
def test_malformed_selection(row: list[int], message: str):
    with pytest.raises(VerificationError, match=rf"selection of layer 3, example 0 {message}"):
        comparison().layer(SCORES, SELECTED, decision(indices=np.array([row, [1, 2]])))


def test_padding_is_never_selected():
    with pytest.raises(VerificationError, match=r"example 1 is not a sorted set of valid positions: \[1, 3\]"):
        comparison().layer(SCORES, SELECTED, decision(indices=np.array([[0, 2], [1, 3]])))


@pytest.mark.parametrize("slot", [0, 4, -1])
def test_unused_slot_that_would_write_over_another(slot: int):
    used = np.array([[True, False], [True, True]])
    with pytest.raises(VerificationError, match=r"example 0 has unused slots that collide or lie outside"):
        comparison().layer(SCORES, [[0], [1, 2]], decision(indices=np.array([[0, slot], [1, 2]]), used=used))


def test_unused_slot_elsewhere_is_fine():
    used = np.array([[True, False], [True, True]])
    comparison().layer(SCORES, [[0], [1, 2]], decision(indices=np.array([[0, 3], [1, 2]]), used=used))


@pytest.mark.parametrize("used", [[[True, False], [True, True]], [[False, False], [True, True]]])
def test_wrong_number_of_tokens(used: list[list[bool]]):
    with pytest.raises(VerificationError, match=r"selection of layer 3, example 0 routes [01] tokens, expected 2"):
        comparison().layer(SCORES, SELECTED, decision(used=np.array(used)))


@pytest.mark.parametrize("error", [2e-4, -0.5, np.nan])
def test_wrong_gate(error: float):
    gates = GATES.copy()
    gates[1, 0] += error
    with pytest.raises(VerificationError, match=r"gates of layer 3 differ by .* at example 1, position 0"):
        comparison().gates(GATES, decision(gates=gates))


@pytest.mark.parametrize("error", [2e-4, 3.0, np.nan, np.inf])
def test_wrong_output(error: float):
    logits = np.zeros((2, 3))
    wrong = logits.copy()
    wrong[1, 2] = error
    with pytest.raises(
        VerificationError, match=r"input 'two examples': logits differ by .* \(allowed 0.0001\) at example 1$"
    ):
        comparison().outputs({"logits": logits}, {"logits": wrong})


def test_wrong_output_of_a_token():
    wanted = np.zeros((2, 4, 5))
    wrong = wanted.copy()
    wrong[0, 2, 4] = 1.0
    with pytest.raises(VerificationError, match=r"last_hidden_state differ by 1 .* at example 0, position 2"):
        comparison().outputs({"last_hidden_state": wanted}, {"last_hidden_state": wrong})


def test_output_of_padding_does_not_matter():
    wanted = np.zeros((2, 4, 5))
    other = wanted.copy()
    other[1, 3] = np.nan
    assert comparison().outputs({"x": wanted}, {"x": other}).outputs == {"x": 0.0}


def test_output_of_padding_does_not_widen_the_tolerance():
    wanted = np.zeros((2, 4, 5))
    wanted[1, 3] = 1e9
    wrong = wanted.copy()
    wrong[0, 0, 0] = 0.01
    with pytest.raises(VerificationError, match=r"x differ by 0.01"):
        comparison().outputs({"x": wanted}, {"x": wrong})


@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (2, 3, 1)])
def test_output_of_another_shape(shape: tuple[int, ...]):
    with pytest.raises(VerificationError, match=r"logits has shape .*, expected \[2, 3\]"):
        comparison().outputs({"logits": np.zeros((2, 3))}, {"logits": np.zeros(shape)})


def test_missing_output():
    with pytest.raises(VerificationError, match=r"logits is missing"):
        comparison().outputs({"logits": np.zeros((2, 3))}, {})


# Example 0 has positions 2 and 3 as good as equal: each side takes another one.
TIED = SCORES.copy()
TIED[0, 3] = TIED[0, 2] - 1e-5
TIED_ACTUAL = TIED.copy()
TIED_ACTUAL[0, 3] += 3e-5
OTHER_WAY = {"scores": TIED_ACTUAL, "indices": np.array([[0, 3], [1, 2]])}


def test_tie_is_explained():
    compared = comparison()
    compared.layer(TIED, SELECTED, decision(**OTHER_WAY))
    ties = [(tie.layer, tie.example, tie.position) for tie in compared.result.ties]
    assert ties == [(3, 0, 2), (3, 0, 3)]
    for tie in compared.result.ties:
        assert tie.margin <= tie.allowed == pytest.approx(8e-4)
    assert compared.result.narrowest == pytest.approx(1e-5, rel=0.05)


def test_replayed_reference_keeps_comparing_after_a_tie():
    compared = comparison(replayed=True)
    compared.layer(TIED, SELECTED, decision(**OTHER_WAY))
    with pytest.raises(VerificationError, match=r"logits differ by 1 .* at example 0"):
        compared.outputs({"logits": np.zeros((2, 3))}, {"logits": np.array([[1.0, 0, 0], [0, 0, 0]])})


def test_example_is_left_out_after_a_tie_when_not_replayed():
    compared = comparison(replayed=False)
    compared.layer(TIED, SELECTED, decision(**OTHER_WAY))
    wrong_scores = SCORES.copy()
    wrong_scores[0] += 50  # the next layer of example 0 goes its own way, too
    compared.layer(SCORES, SELECTED, decision(scores=wrong_scores))
    compared.gates(GATES, decision(gates=np.array([[9.0, 9.0], GATES[1]])))
    result = compared.outputs({"logits": np.zeros((2, 3))}, {"logits": np.array([[1.0, 0, 0], [0, 0, 0]])})
    assert (result.skipped, result.outputs, result.gates) == (1, {"logits": 0.0}, 0.0)


def test_other_examples_are_still_compared_after_a_tie():
    compared = comparison(replayed=False)
    compared.layer(TIED, SELECTED, decision(**OTHER_WAY))
    with pytest.raises(VerificationError, match=r"at example 1"):
        compared.outputs({"logits": np.zeros((2, 3))}, {"logits": np.array([[0.0, 0, 0], [1, 0, 0]])})


def test_margin():
    assert margin(SCORES[0], MASK[0], [0, 2]) == pytest.approx(1.0)
    assert margin(SCORES[1], MASK[1], [1, 2]) == pytest.approx(1.25)  # padding's 9 does not count
    assert margin(SCORES[0], MASK[0], [0, 1, 2, 3]) is None
    assert margin(SCORES[0], MASK[0], [1]) == pytest.approx(-3.0)
