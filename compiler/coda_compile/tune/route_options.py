"""How to route a model."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from coda_compile.errors import OptionError
from coda_models.config import CodaConfig, Reduction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Reductions = Reduction | Sequence[Reduction]
Stage = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class RouteOptions:
    """How to route a model.

    Attributes:
        budget: share of the dense model's multiply-adds in its layers, everything included; r is chosen for each layer.
        accuracy_budget: points of a hundred of agreement with the dense model that may be lost, on as many texts as are
            held out, kept aside from the fit and from these; r is chosen. See ``MAIN_FIGURES`` of
            ``coda_compile.tune.agreement``.
        attention: ``k_to_all`` or ``k_to_k``, as in ``CodaConfig``.
        stand_in: rank of what stands for a layer for the tokens that skip it.
        key_value_rank: of the keys and values of these tokens in ``k_to_all``; 0 for exact ones; ``None`` for 64 there.
        fit_texts: for routers and stand-ins, at most; the readout is fitted on these and up to 2,000.
        steps: of distillation behind the fit, at most; 0 for none.
        held_out: a file of texts to measure with, instead of a fifth of the others.
        label_column: of the file of texts, which holds labels to measure accuracy by; no fit sees them.
        backbone, tokenizer, problem_type, labels: as in ``CompileOptions``.
        seed: draws the texts that are held out, and the order of steps.
    """

    budget: float | None = None
    accuracy_budget: float | None = None
    attention: str = "k_to_all"
    stand_in: int = 64
    key_value_rank: int | None = None
    fit_texts: int = 400
    steps: int = 0
    held_out: Path | None = None
    label_column: str | None = None
    backbone: Path | str | None = None
    tokenizer: "PreTrainedTokenizerBase | None" = None
    problem_type: str | None = None
    labels: Sequence[str] | None = None
    seed: int = 0

    @property
    def chooses(self) -> bool:
        """Whether r is chosen within a budget."""
        return self.budget is not None or self.accuracy_budget is not None

    def given(self, reductions: Sequence[Reductions] | None) -> Sequence[Reductions]:
        """r of each model as they are given, 4 by default; none where r is to be chosen.

        Raises:
            OptionError: they contradict each other, or no model could keep within a budget.
        """
        if sum(one is not None for one in (reductions, self.budget, self.accuracy_budget)) > 1:
            raise OptionError(
                "{reduction}, {budget} and {accuracy_budget} each say how much is routed: give one of them"
            )
        if self.budget is not None and not 0 < self.budget < 1:
            raise OptionError(
                "{budget} {given} is no share of the dense model's multiply-adds: give e.g. 0.25", given=self.budget
            )
        if self.accuracy_budget is not None and not 0 <= self.accuracy_budget <= 100:
            raise OptionError(
                "{accuracy_budget} {given} is not from 0 to 100 points: give e.g. 1.0", given=self.accuracy_budget
            )
        return () if self.chooses else reductions or (4,)

    def config(self, reduction: Reductions) -> CodaConfig:
        """What is asked for at some r, checked.

        Raises:
            ConfigError: it contradicts itself.
            OptionError: it routes nothing, or steps are fewer than none.
        """
        if self.steps < 0:
            raise OptionError("{steps} {given} are fewer than none: give 0 or more", given=self.steps)
        if self.attention == "k_to_k" and self.key_value_rank:
            raise OptionError("with k-to-k, tokens that are not routed are no keys: leave {key_value_rank} out")
        rank = self.key_value_rank
        if rank is None:
            rank = 64 if self.attention == "k_to_all" else 0
        config = CodaConfig(reduction=reduction, attention=self.attention, stand_in=self.stand_in, key_value_rank=rank)
        if self.stand_in == 0:
            raise OptionError("{stand_in} 0 leaves nothing for the tokens that skip a layer: give 1 or more")
        if config.reduction == 1 or (isinstance(config.reduction, tuple) and set(config.reduction) == {1}):
            raise OptionError("{reduction} 1 is the dense model itself: give 2 or more")
        return config


def spelt(reduction: Reductions) -> str:
    """r in text; of several, one a layer, with commas."""
    single = isinstance(reduction, str | int | Fraction)
    return str(reduction) if single else ",".join(map(str, reduction))  # type: ignore[arg-type]  # single says so
