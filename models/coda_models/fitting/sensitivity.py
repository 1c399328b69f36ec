"""Which layers can skip tokens: measured one layer at a time with all in place, and turned into r for each layer.

It differs from task to task: one layer may lose most answers at r = 2 where the one below it loses none at r = 8.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np
import torch
from torch import Tensor

from coda_models.config import Reduction, parse_reduction
from coda_models.conversion import add_stand_ins
from coda_models.cost import layer_multiply_adds
from coda_models.errors import ConfigError
from coda_models.fitting.answers import disagreement, divergence, rows_of_answers
from coda_models.fitting.batches import Batches, Progress, Walk, silent
from coda_models.fitting.route import check_dense, fitted_routers, set_routers
from coda_models.fitting.stand_ins import RIDGE, LayerFit
from coda_models.fitting.states import States, kept_states
from coda_models.layers.layer import CodaLayer
from coda_models.model import CodaModel

CHOICES: tuple[Reduction, ...] = (1, 2, 4, 8, 16)
ByReduction = Mapping[Fraction, float]


@dataclass(frozen=True)
class Choice:
    """r for each layer.

    Attributes:
        reductions: bottom first.
        share: of the dense model's multiply-adds in its layers, everything included, for the texts fitted to.
        agreement: expected with the dense model, from 0 to 1, where each layer loses what it loses alone: the share of
            texts with the same label (of tokens, where these are labelled), R² of regression, the cosine of embeddings.
    """

    reductions: tuple[Fraction, ...]
    share: float
    agreement: float


@dataclass(frozen=True)
class Sensitivity:
    """What each layer loses and costs at each r, where all others are dense; one mapping a layer, bottom first.

    Attributes:
        divergences: as ``coda_models.fitting.answers.divergence`` has it.
        disagreements: as ``coda_models.fitting.answers.disagreement`` has it.
        costs: multiply-adds, for the texts fitted to.
    """

    divergences: Sequence[ByReduction]
    disagreements: Sequence[ByReduction]
    costs: Sequence[ByReduction]

    @property
    def least(self) -> float:
        """The smallest share of the dense model's multiply-adds that any r take."""
        return sum(min(layer.values()) for layer in self.costs) / self._dense

    def choose(self, share: float) -> Choice:
        """The least harmful r that take a share of the dense model's multiply-adds at most.

        Raises:
            ConfigError: none does.
        """
        chosen = allocate(self.divergences, self.costs, share)
        cost, lost = (
            sum(layer[r] for layer, r in zip(layers, chosen, strict=True))
            for layers in (self.costs, self.disagreements)
        )
        return Choice(tuple(chosen), cost / self._dense, max(0.0, 1 - lost))

    @property
    def _dense(self) -> float:
        return sum(layer[Fraction(1)] for layer in self.costs)


@torch.no_grad()
def sensitivity(
    model: CodaModel,
    batches: Batches,
    *,
    reductions: Sequence[Reduction] = CHOICES,
    attention: str = "k_to_all",
    stand_in: int = 64,
    key_value_rank: int = 64,
    routers: Sequence[Tensor] | None = None,
    texts: int = 100,
    progress: Progress = silent,
) -> Sensitivity:
    """Measure how far each layer alone at r moves the answers of a dense model; no labels are needed.

    Routers, and for each r a layer's stand-in, thin keys and values, are fitted first. The dense model's states wait in
    a temporary folder, so that a layer at r costs the layers above it alone; memory holds one batch, the sums of one
    layer at every r, and some texts' answers.

    Args:
        model: dense or run dense; not changed.
        batches: as for ``route_model``.
        reductions: what each layer chooses from; 1 is always among them.
        attention, stand_in, key_value_rank, routers: as for ``route_model``.
        texts: of the batches, evenly drawn, whose answers are compared; whole batches, so that it may be a few more.
        progress: told how many layers are done.

    Raises:
        ConfigError, UnsupportedModelError: as ``route_model`` does.
    """
    check_dense(model)
    choices = sorted({Fraction(1), *map(parse_reduction, reductions)})
    if routers is None:
        routers = fitted_routers(model, batches, progress=progress)
    model = deepcopy(model).eval()
    add_stand_ins(
        model,
        reduction=1,
        stand_in=stand_in,
        attention=attention,
        key_value_rank=key_value_rank if attention == "k_to_all" else 0,
    )
    set_routers(model, routers)
    divergences: list[ByReduction] = []
    disagreements: list[ByReduction] = []
    with kept_states() as states:
        dense = _Dense(model, Walk(model, batches), states, texts)
        wanted = dense.answers(0)
        for j, layer in enumerate(model.coda_layers()):
            progress("layers", j, len(model.layers))
            given = {Fraction(1): wanted}
            for r, fit in _fits(layer, j, choices[1:], dense).items():
                layer.reduction = r
                fit.solve(RIDGE)
                given[r] = dense.answers(j)
            layer.reduction = Fraction(1)
            divergences.append({r: divergence(model, wanted, one) for r, one in given.items()})
            disagreements.append({r: disagreement(model, wanted, one) for r, one in given.items()})
    progress("layers", len(model.layers), len(model.layers))
    return Sensitivity(divergences, disagreements, _costs(model, dense.lengths, choices))


def allocate(losses: Sequence[ByReduction], costs: Sequence[ByReduction], share: float) -> list[Fraction]:
    """r for each layer with the smallest sum of losses whose costs are at most a share of those at r = 1, exactly.

    Raises:
        ConfigError: even the cheapest r of every layer costs more.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    reductions = list(losses[0])
    count = len(reductions)
    loss = np.array([[layer[r] for r in reductions] for layer in losses]).ravel()  # [layers * reductions]
    loss /= max(loss.max(), np.finfo(float).tiny)  # the solver's tolerance is absolute, too
    cost = np.array([[layer[r] for r in reductions] for layer in costs], float)
    cost /= cost[:, reductions.index(Fraction(1))].sum()
    one_each = np.kron(np.eye(len(losses)), np.ones(count))  # [layers, layers * reductions]
    solved = milp(
        loss,
        integrality=np.ones_like(loss),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(cost.ravel(), 0, share)],
    )
    if solved.x is None:
        least = np.ceil(100 * cost.min(1).sum()) / 100
        raise ConfigError(
            f"no r of {', '.join(map(str, reductions))} brings the layers down to {share:.2f} of their multiply-adds, "
            f"{least:.2f} is the least: allow more, or smaller ranks"
        )
    return [reductions[i] for i in solved.x.reshape(-1, count).argmax(1)]


class _Dense:
    """States of all texts in front of one layer of a model at r = 1, and answers to some of the texts.

    Attributes:
        lengths: how many texts have how many tokens, learned ones in front not counted.
    """

    def __init__(self, model: CodaModel, walk: Walk, states: States, texts: int) -> None:
        self._model, self._states = model, states
        self.lengths: Counter[int] = Counter()
        for i, inputs in enumerate(walk):
            self._like, mask, _ = model.embed(inputs)
            states.keep("mask", i, mask)
            states.keep("layer 0", i, self._like)
            self.lengths.update((mask.sum(1) - model.prompt_tokens).tolist())
        self._batches = len(walk)
        drawn = min(self._batches, ceil(self._batches * texts / self.lengths.total()))
        self._drawn = [(2 * i + 1) * self._batches // (2 * drawn) for i in range(drawn)]

    def walk(self, layer: CodaLayer, index: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """States in front of a layer and behind it, which are kept for the next one, and where they are valid."""
        for i in range(self._batches):
            x, mask, table = self._read(index, i)
            y = layer.dense(x, mask, table)
            self._states.keep(f"layer {(index + 1) % 2}", i, y)
            yield x, y, mask

    def answers(self, index: int) -> Tensor:
        """Of the model, from the states in front of a layer on. [rows, outputs]"""
        layers, found = list(self._model.coda_layers())[index:], []
        for i in self._drawn:
            x, mask, table = self._read(index, i)
            for layer in layers:
                x, _ = layer(x, mask, table)
            found.append(rows_of_answers(self._model, self._model.answer(x, mask), mask))
        return torch.cat(found)

    def _read(self, index: int, batch: int) -> tuple[Tensor, Tensor, Tensor | None]:
        x = self._states.read(f"layer {index % 2}", batch, self._like)
        return x, self._states.read("mask", batch, self._like), self._model.table(x)


def _fits(layer: CodaLayer, index: int, reductions: Sequence[Fraction], dense: _Dense) -> dict[Fraction, LayerFit]:
    """What stands for a layer at each r, summed up but not solved."""
    fits = {r: LayerFit(layer, index, corrected=False) for r in reductions}
    for x, y, mask in dense.walk(layer, index):
        for r, fit in fits.items():
            layer.reduction = r
            fit.add(x, mask, y - x)
    return fits


def _costs(model: CodaModel, lengths: Mapping[int, int], reductions: Sequence[Fraction]) -> list[ByReduction]:
    found: list[dict[Fraction, float]] = [dict.fromkeys(reductions, 0) for _ in model.layers]
    for tokens, count in lengths.items():
        for r in reductions:
            for layer, cost in zip(found, layer_multiply_adds(model, tokens, r), strict=True):
                layer[r] += count * cost
    return list(found)
