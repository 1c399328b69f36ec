"""Routers fitted to what tokens are worth to the dense model, by one ridge regression a layer."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from coda_models.errors import ConfigError
from coda_models.fitting.answers import loss_of_own_answers
from coda_models.fitting.batches import Batches, Progress, Walk, check_finite, evaluating, silent
from coda_models.fitting.regression import ridged, varies
from coda_models.layers.layer import CodaLayer
from coda_models.model import CodaModel

SALIENCIES = ("both", "cost", "key")


class Saliency(NamedTuple):
    """What each token of a batch is worth in one layer."""

    read: Tensor  # [batch, tokens, width], what the router reads
    cost: Tensor  # [batch, tokens], |⟨∂L/∂u, u⟩|: what skipping its update u = layer(x) - x costs
    key: Tensor  # [batch, tokens], |∂L/∂(its additive mask)|: what losing it as a key costs


def fit_routers(
    model: CodaModel,
    batches: Batches,
    *,
    by: str = "both",
    ridge: float = 0.05,
    deviation: float = 0.3,
    progress: Progress = silent,
) -> None:
    """Fit every router to the saliency of tokens in the dense model, in place; no labels are needed.

    L is the loss of the model's own answers at r = 1. Saliencies are ranked within each text, from -1/2 to 1/2; the
    router is the ridge regression of ranks on what it reads, centred within the text, since adding a number to all
    scores of a text changes nothing. Sums over texts are two matrices of the width a layer, however many texts there
    are.

    Args:
        model: with routers.
        by: ``cost``, ``key`` or ``both``, the rank of the sum of the two ranks. Tokens that are not routed are lost as
            keys too in ``k_to_k``, and are thinner ones in ``k_to_all``.
        ridge: as a fraction of the mean variance.
        deviation: of the scores within a text, what ε of the soft top-k is measured against.

    Raises:
        ConfigError: no routers, no texts or none that has a token, an unknown ``by``, or states that are NaN.
    """
    if by not in SALIENCIES:
        raise ConfigError(f"routers by {by!r} are unknown: use one of {', '.join(SALIENCIES)}")
    layers = [layer for layer in model.coda_layers() if layer.router is not None]
    if not layers:
        raise ConfigError("this model has no routers to fit: convert it with adapters, or add stand-ins to it")
    walk = Walk(model, batches)
    fits = [_RankFit(layer) for layer in layers]
    with evaluating(model):
        for done, inputs in enumerate(walk):
            progress("routers", done, len(walk))
            mask, found = saliency(model, inputs, keys=by != "cost")
            for fit, one in zip(fits, found, strict=True):
                fit.add(one, mask, by)
    for fit, layer in zip(fits, layers, strict=True):
        assert layer.router is not None
        with torch.no_grad():
            layer.router.weight.copy_(fit.weight(ridge, deviation).unsqueeze(1))
    progress("routers", len(walk), len(walk))


def saliency(model: CodaModel, inputs: Mapping[str, Tensor], *, keys: bool = True) -> tuple[Tensor, list[Saliency]]:
    """What each token is worth in each layer that has a router, in the model at r = 1.

    Args:
        inputs: of one batch.
        keys: whether to ask for what they are worth as keys; without, ``key`` is zeros.

    Returns:
        Where tokens are valid, [batch, tokens], and one ``Saliency`` a router.

    Raises:
        ConfigError: states that are NaN or infinite.
    """
    with torch.no_grad():
        x, mask, table = model.embed(inputs)
    x.requires_grad_()
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    with torch.enable_grad():
        for i, layer in enumerate(model.coda_layers()):
            key_bias = x.new_zeros(len(x), 1, 1, x.shape[1]).requires_grad_(keys)
            y = layer.dense(x, mask, table, key_bias if keys else None)
            check_finite(f"layer {i}", y[mask])
            if layer.router is not None:
                seen.append((layer.block.read(x).detach(), y.detach() - x.detach(), y, key_bias))
            x = y
        loss = loss_of_own_answers(model, model.answer(x, mask), mask)
        asked = [y for _, _, y, _ in seen] + [key_bias for *_, key_bias in seen if keys]
        gradients = torch.autograd.grad(loss, asked)
    found = []
    for i, (read, update, _, key_bias) in enumerate(seen):
        cost = (gradients[i].double() * update.double()).sum(-1).abs()
        key = gradients[len(seen) + i] if keys else key_bias.detach()
        found.append(Saliency(read, cost, key[:, 0, 0].double().abs()))
    return mask, found


def ranks(values: Tensor, mask: Tensor) -> Tensor:
    """Rank of each valid token within its text from -1/2 to 1/2, equal values sharing one; 0 for padding.

    Args:
        values: [batch, tokens]; mask: [batch, tokens] bool.

    Returns:
        [batch, tokens], float64.
    """
    most = mask.sum(-1, keepdim=True) - 1
    return (_places(values, mask) / most.clamp(min=1) - 0.5).masked_fill(~mask | (most == 0), 0.0)


def _places(values: Tensor, mask: Tensor) -> Tensor:
    """From 0 on, halves where values are equal: exact, so that equal sums of places are equal too. [batch, tokens]"""
    own, other = values.unsqueeze(2), values.unsqueeze(1)
    below = ((other < own) & mask.unsqueeze(1)).sum(-1)
    equal = ((other == own) & mask.unsqueeze(1)).sum(-1)  # itself among them
    return below + (equal - 1).double() / 2


class _RankFit:
    """Sums of one router's regression."""

    def __init__(self, layer: CodaLayer) -> None:
        assert layer.router is not None
        width, device = len(layer.router.weight), layer.router.weight.device
        self._gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._ranks = torch.zeros(width, dtype=torch.float64, device=device)
        self._square = torch.zeros((), dtype=torch.float64, device=device)
        self._tokens = 0

    def add(self, one: Saliency, mask: Tensor, by: str) -> None:
        check_finite("the loss of the model's own answers", one.cost[mask], one.key[mask])
        valid = mask.unsqueeze(-1)
        read = one.read.double().masked_fill(~valid, 0.0)
        mean = read.sum(1, keepdim=True) / mask.sum(1).clamp(min=1)[:, None, None]
        centred = (read - mean).masked_fill(~valid, 0.0).flatten(0, 1)
        if by == "both":
            rank = ranks(_places(one.cost, mask) + _places(one.key, mask), mask)
        else:
            rank = ranks(one.cost if by == "cost" else one.key, mask)
        self._gram += centred.T @ centred
        self._ranks += centred.T @ rank.flatten()
        self._square += read.square().sum()
        self._tokens += int(mask.sum())

    def weight(self, ridge: float, deviation: float) -> Tensor:
        """[width], float64."""
        if not self._tokens:
            raise ConfigError("the texts to fit on have no tokens: pass some that have")
        square = self._square / len(self._gram)
        solved = torch.linalg.solve(ridged(self._gram, ridge * self._gram.diagonal().mean(), square), self._ranks)
        of_scores = (solved @ self._gram @ solved / self._tokens).sqrt()
        if not varies(self._gram, square) or of_scores == 0:
            return torch.zeros_like(solved)  # tokens of a text are all alike: the first ones are routed
        weight: Tensor = solved * deviation / of_scores
        return weight
