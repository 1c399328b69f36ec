"""Tie-aware comparison of two implementations of a routed model.

Two implementations may differ only where scores are closer than their arithmetic error. So scores are compared first,
tightly; then the selected sets; then every differing slot is explained by its margin or refused; outputs come last.
``allclose`` on outputs alone would hide a bug or fail on a tie.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coda_compile.errors import VerificationError
from coda_targets.bundle import Arrays
from coda_targets.routing import Decision

FLAG = "is_ood"


@dataclass(frozen=True)
class Tolerances:
    """How far two implementations may differ, float32 ones by default.

    Attributes:
        scores: absolute, times the largest score of the layer where that exceeds 1.
        gates: absolute, for gates computed from the same scores.
        outputs: absolute, times the largest output where that exceeds 1.
    """

    scores: float = 2e-5
    gates: float = 1e-6
    outputs: float = 5e-5


@dataclass(frozen=True)
class Tie:
    """A slot that two implementations gave to different tokens because their scores are as good as equal.

    Attributes:
        margin: how far the token's score lies from the boundary of the selection.
        allowed: the largest margin that arithmetic error explains.
    """

    layer: int
    example: int
    position: int
    margin: float
    allowed: float


@dataclass
class CaseParity:
    """How one input compared.

    Attributes:
        case: what the input was, for people.
        scores, gates, outputs: largest differences seen, outputs by name.
        narrowest: the smallest margin between a selected and an unselected token, over all layers and examples;
            ``None`` where none leaves a token out.
        ties: differing slots, each explained.
        skipped: examples not compared to the end because a tie sent them another way.
        float64: whether the reference is in float64, as float32 could not tell who is right.
        task: of a bundle with several.
    """

    case: str
    scores: float = 0.0
    gates: float = 0.0
    outputs: dict[str, float] = field(default_factory=dict)
    narrowest: float | None = None
    ties: list[Tie] = field(default_factory=list)
    skipped: int = 0
    float64: bool = False
    task: str = ""


def margin(scores: NDArray[Any], mask: NDArray[Any], selected: Sequence[int]) -> float | None:
    """Lowest selected score minus highest unselected valid one; ``None`` where nothing is left out."""
    chosen = np.zeros(mask.shape, dtype=bool)
    chosen[list(selected)] = True
    inside, outside = scores[chosen & mask], scores[~chosen & mask]
    return float(inside.min() - outside.max()) if inside.size and outside.size else None


class Comparison:
    """Compare one input, layer by layer, then its outputs.

    Args:
        case: what the input is, for people; named in every failure.
        mask: [batch, tokens] bool.
        tolerances: what counts as arithmetic error.
        replayed: whether the reference followed the other side's selections, so that what comes after a tie still
            compares; otherwise an example is left out from its first tie on.
    """

    def __init__(self, case: str, mask: NDArray[np.bool_], tolerances: Tolerances, *, replayed: bool) -> None:
        self.result = CaseParity(case)
        self._mask = mask
        self._tolerances = tolerances
        self._replayed = replayed
        self._live = np.ones(mask.shape[0], dtype=bool)

    def well_formed(self, actual: Decision) -> None:
        """Check that a decision is one: valid positions, sorted, and no slot that collides with another.

        Raises:
            VerificationError: what is wrong with the selection of which example.
        """
        for example in np.flatnonzero(self._live):
            got, mask = actual.selected(int(example)), self._mask[example]
            where = f"selection of layer {actual.layer}, example {example}"
            if got != sorted(set(got)) or not all(0 <= i < len(mask) and mask[i] for i in got):
                self._fail(f"{where} is not a sorted set of valid positions: {got}")
            slots = actual.indices[example].tolist()
            if len(set(slots)) != len(slots) or not all(0 <= i < len(mask) for i in slots):
                self._fail(f"{where} has unused slots that collide or lie outside: {slots}")

    def scores(self, expected: NDArray[Any], actual: Decision, *, more: float = 0.0) -> float:
        """Compare one layer's scores; returns how far they may differ.

        Args:
            expected: [batch, tokens] of the reference.
            more: is allowed where that exceeds the tolerance.
        """
        scale = max(1.0, float(np.abs(expected[self._mask]).max(initial=0.0)))
        allowed = max(self._tolerances.scores * scale, more)
        difference = np.abs(actual.scores - expected)
        compared = self._mask & self._live[:, None]
        self._within(difference, compared, allowed, f"scores of layer {actual.layer}")
        self.result.scores = max(self.result.scores, float(difference[compared].max(initial=0.0)))
        return allowed

    def layer(
        self,
        expected_scores: NDArray[Any],
        expected: Sequence[Sequence[int]],
        actual: Decision,
        *,
        more: float = 0.0,
    ) -> None:
        """Compare one layer's scores and selection.

        Args:
            expected_scores: [batch, tokens] of the reference.
            expected: positions that the reference selects, for each example.
            actual: the other side's decision.
            more: of a difference of scores is allowed where that exceeds the tolerance.

        Raises:
            VerificationError: scores too far apart, a malformed selection, or a difference that no tie explains.
        """
        self.well_formed(actual)
        allowed = self.scores(expected_scores, actual, more=more)
        for example in map(int, np.flatnonzero(self._live)):
            self._selection(example, expected_scores[example], list(expected[example]), actual, 2 * allowed)

    def gates(self, expected: NDArray[Any], actual: Decision, *, more: float = 0.0) -> None:
        """Compare gates that the reference computed from the other side's own scores and selection.

        Args:
            more: is allowed where the other side computes them in float32.
        """
        difference = np.abs(actual.gates - expected)
        compared = np.broadcast_to(self._live[:, None], difference.shape)
        self._within(difference, compared, self._tolerances.gates + more, f"gates of layer {actual.layer}")
        self.result.gates = max(self.result.gates, float(difference[compared].max(initial=0.0)))

    def quantised_input(self, name: str, expected: NDArray[Any], actual: NDArray[Any]) -> None:
        """Compare what a linear layer quantises, in every slot of the examples that still compare."""
        if actual.shape != expected.shape:
            self._fail(f"input of {name} has shape {list(actual.shape)}, expected {list(expected.shape)}")
        scale = max(1.0, float(np.abs(expected[self._live]).max(initial=0.0)))
        difference = np.abs(actual - expected).max(-1)
        compared = np.broadcast_to(self._live[:, None], difference.shape)
        self._within(difference, compared, self._tolerances.outputs * scale, f"input of {name}")

    def outputs(self, expected: Arrays, actual: Arrays, *, more: Mapping[str, float] | None = None) -> CaseParity:
        """Compare the model's outputs, valid tokens alone where there is one a token, and return the result.

        Args:
            more: by name, is allowed where that exceeds the tolerance.
        """
        for name, wanted in expected.items():
            if name == FLAG:
                continue  # a threshold between two scores: ``flags`` holds it against the score
            if name not in actual:
                self._fail(f"{name} is missing")
            got = actual[name]
            if got.shape != wanted.shape:
                self._fail(f"{name} has shape {list(got.shape)}, expected {list(wanted.shape)}")
            per_token = wanted.ndim == 3
            compared = self._mask & self._live[:, None] if per_token else self._live
            scale = max(1.0, float(np.abs(wanted[compared]).max(initial=0.0)))
            difference = np.abs(got - wanted)
            difference = difference.reshape(*difference.shape[: compared.ndim], -1).max(-1)
            allowed = max(self._tolerances.outputs * scale, (more or {}).get(name, 0.0))
            self._within(difference, compared, allowed, name)
            self.result.outputs[name] = float(difference[compared].max(initial=0.0))
        self.result.skipped = int((~self._live).sum())
        return self.result

    def flags(self, actual: Arrays, threshold: float) -> None:
        """Check that exactly the texts whose own score lies above the threshold are flagged."""
        above = actual["ood_score"] > np.float32(threshold)
        if wrong := np.flatnonzero(actual[FLAG] != above).tolist():
            self._fail(f"{FLAG} of example {wrong[0]} does not follow from its ood_score and the threshold {threshold}")

    def _selection(
        self, example: int, scores: NDArray[Any], expected: list[int], actual: Decision, allowed: float
    ) -> None:
        got, mask = actual.selected(example), self._mask[example]
        where = f"selection of layer {actual.layer}, example {example}"
        if len(got) != len(expected):
            self._fail(f"{where} routes {len(got)} tokens, expected {len(expected)}")
        margins = self.result.narrowest, margin(scores, mask, expected)
        self.result.narrowest = min((one for one in margins if one is not None), default=None)
        boundary = float(scores[expected].min()) if expected else 0.0
        for position in sorted(set(got) ^ set(expected)):
            distance = abs(float(scores[position]) - boundary)
            if not distance <= allowed:
                self._fail(
                    f"{where} differs at position {position}, {distance:.2g} from the boundary where arithmetic "
                    f"explains {allowed:.2g}"
                )
            self.result.ties.append(Tie(actual.layer, example, position, distance, allowed))
            if not self._replayed:
                self._live[example] = False

    def _within(self, difference: NDArray[Any], compared: NDArray[Any], allowed: float, what: str) -> None:
        bad = compared & ~(difference <= allowed)  # not (≤), so that NaN fails
        if bad.any():
            masked = np.where(compared, np.nan_to_num(difference, nan=np.inf), -1.0)
            worst = tuple(int(i) for i in np.unravel_index(int(masked.argmax()), masked.shape))
            place = f"example {worst[0]}" + (f", position {worst[1]}" if len(worst) > 1 else "")
            self._fail(f"{what} differ by {difference[worst]:.2g} (allowed {allowed:.2g}) at {place}")

    def _fail(self, what: str) -> None:
        raise VerificationError(f"verification failed on input '{self.result.case}': {what}")
