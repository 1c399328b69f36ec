"""Which layers can skip tokens: measured on the dense adapter, one layer at a time, and turned into r for each layer.

It differs from task to task: one layer may lose most accuracy at r = 2 where the one below it loses nothing at r = 8.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from coda_models.config import Reduction, parse_reduction
from coda_models.errors import ConfigError
from coda_models.model import CodaModel
from coda_models.training.train import TailCollator, logits_of
from coda_ops.cost import multiply_adds

CHOICES: tuple[Reduction, ...] = (1, 2, 8)  # all tokens, half, few: each r more costs a run for every layer


def choose_reductions(
    dense: CodaModel,
    rows: Sequence[dict[str, Any]],
    collator: TailCollator,
    share: float,
    choices: Sequence[Reduction] = CHOICES,
) -> list[Fraction]:
    """r for each layer, the least harmful that fit a share of the dense model's multiply-adds.

    Args:
        dense: a trained model at r = 1, which it is left at.
        rows: of token ids, by the name of the model's input, and ``labels``; one or two hundred training texts.
        collator: at the length that the model will run at.
        share: of the multiply-adds of all layers at r = 1, for a text of the collator's length.
        choices: what each layer chooses from.

    Raises:
        ConfigError: nothing to choose from fits the share, or an impossible r.
    """
    reductions = sorted({Fraction(1), *map(parse_reduction, choices)})
    losses = sensitivity(dense, rows, collator, reductions)
    return allocate(losses, _costs(dense, collator.tokens, reductions), share)


def sensitivity(
    dense: CodaModel, rows: Sequence[dict[str, Any]], collator: TailCollator, reductions: Sequence[Reduction]
) -> list[dict[Fraction, float]]:
    """How far each layer alone at r, by a router that was never trained, moves the answers of a model at r = 1.

    Returns:
        For each layer, by r: the Kullback-Leibler divergence from the answers at r = 1 in nats, mean over the rows.
    """
    layers = len(dense.layers)
    dense.set_reduction(1)
    wanted = _answers(dense, rows, collator)
    found: list[dict[Fraction, float]] = []
    for layer in range(layers):
        found.append({})
        for r in map(parse_reduction, reductions):
            dense.set_reduction([r if i == layer else 1 for i in range(layers)])
            given = wanted if r == 1 else _answers(dense, rows, collator)
            found[-1][r] = float(F.kl_div(given, wanted, reduction="batchmean", log_target=True))
    dense.set_reduction(1)
    return found


def allocate(
    losses: Sequence[Mapping[Fraction, float]], costs: Sequence[Mapping[Fraction, int]], share: float
) -> list[Fraction]:
    """r for each layer with the smallest sum of losses whose costs are at most a share of those at r = 1, exactly.

    Raises:
        ConfigError: even the cheapest r of every layer costs more.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    reductions = list(losses[0])
    count = len(reductions)
    loss = np.array([[layer[r] for r in reductions] for layer in losses]).ravel()  # [layers * reductions]
    cost = np.array([[layer[r] for r in reductions] for layer in costs], float).ravel()
    cost /= sum(layer[Fraction(1)] for layer in costs)
    one_each = np.kron(np.eye(len(losses)), np.ones(count))  # [layers, layers * reductions]
    solved = milp(
        loss,
        integrality=np.ones_like(loss),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(cost, 0, share)],
    )
    if solved.x is None:
        raise ConfigError(
            f"no r of {', '.join(map(str, reductions))} brings the layers down to {share:.2f} of their multiply-adds: "
            "allow more, or larger r"
        )
    return [reductions[i] for i in solved.x.reshape(-1, count).argmax(1)]


def _answers(model: CodaModel, rows: Sequence[dict[str, Any]], collator: TailCollator) -> Tensor:
    """Log probabilities, [rows, labels]."""
    return F.log_softmax(logits_of(model, rows, collator), -1)


def _costs(model: CodaModel, tokens: int, reductions: Sequence[Fraction]) -> list[dict[Fraction, int]]:
    return [
        {
            r: multiply_adds(
                tokens,
                r if layer.router is not None else Fraction(1),
                attention=layer.attention,
                width=int(model.hf_config.hidden_size),
                feed_forward=layer.block.feed_forward.up.out_features,
                bottleneck=model.coda_config.bottleneck,
            )
            for r in reductions
        }
        for layer in model.coda_layers()
    ]
