"""How to train a dense adapter."""

from dataclasses import dataclass

from coda_compile.errors import OptionError
from coda_models.training.recipe import DENSE
from coda_targets.manifest import PROBLEM_TYPES

SIDES = ("left", "right")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train a dense adapter.

    Attributes:
        label_column: of the file of texts.
        problem_type: of the labels, one of ``coda_targets.manifest.PROBLEM_TYPES``; ``None`` for what they look like.
        max_length: what texts are cut to, in tokens; ``None`` for the backbone's own, 512 at most.
        truncation_side: the end of a long text that is cut, ``left`` or ``right``; ``None`` for the tokenizer's own.
        epochs, learning_rate: of training, see ``coda_models.training.recipe.Recipe``.
        bottleneck: of the adapters, as in ``CodaConfig``.
        delta: leave the backbone out of the checkpoint.
        seed: draws the texts that are held out, the first weights, and the order of training.
    """

    label_column: str = "label"
    problem_type: str | None = None
    max_length: int | None = None
    truncation_side: str | None = None
    epochs: float = DENSE.epochs
    learning_rate: float = DENSE.learning_rate
    bottleneck: int = 64
    delta: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.problem_type not in (None, *PROBLEM_TYPES):
            known = ", ".join(PROBLEM_TYPES)
            raise OptionError(
                "{problem_type} {asked!r} is unknown: use one of {known}", asked=self.problem_type, known=known
            )
        if self.truncation_side not in (None, *SIDES):
            raise OptionError("{truncation_side} {asked!r} is no side: use left or right", asked=self.truncation_side)
        if self.bottleneck < 1:
            raise OptionError(
                "{bottleneck} {asked} leaves nothing to train in a layer: give 1 or more", asked=self.bottleneck
            )
        if not self.epochs > 0 or not 0 < self.learning_rate < float("inf"):
            raise OptionError("{epochs} and {learning_rate} are above 0, or nothing is learned")
        if self.delta and self.max_length is not None:
            raise OptionError("a delta keeps no {max_length}, so that it would run at another: leave it or {delta} out")
