"""What was pruned before export, as stored in report.json. Loads no torch."""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class PrunedLayer:
    """What went from one layer.

    Attributes:
        layer: its number.
        before, after: r.
        dropped: the highest gate that lost its slot in any of the texts, so that no token lost more than that share of
            its update. In k-to-k others lost it as a key, too, which only the comparison of answers tells.
    """

    layer: int
    before: str
    after: str
    dropped: float


@dataclass(frozen=True)
class Pruning:
    """What was removed, and what that changed on the calibration data.

    Attributes:
        threshold: of the gates.
        answers: how many were compared: one a text, or a token.
        changed: how many of them are others now.
        moved: the most that a logit changed by, or 1 - cosine of a sentence embedding.
        of_logits: which of the two.
        layers: those that lost slots.
    """

    threshold: float
    answers: int
    changed: int
    moved: float
    of_logits: bool
    layers: tuple[PrunedLayer, ...]

    def __str__(self) -> str:
        """One sentence."""
        if not self.layers:
            return f"in every layer some text opens its last gate to {self.threshold:g} or more: nothing is pruned"
        lost = ", ".join(f"{one.layer} ({one.before} to {float(Fraction(one.after)):.3g})" for one in self.layers)
        most = max(one.dropped for one in self.layers)
        return (
            f"r raised in layer {lost}: gates of {most:.2g} at most lost their slots, {self.changed} of {self.answers} "
            f"answers changed, and {'logits' if self.of_logits else 'embeddings'} by {self.moved:.2g} at most"
        )
