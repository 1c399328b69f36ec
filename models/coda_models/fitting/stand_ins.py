"""Stand-ins fitted layer by layer on the routed model's own states, by reduced-rank ridge regression."""

import torch
from torch import Tensor, nn

from coda_models.errors import ConfigError
from coda_models.fitting.batches import Batches, Progress, Walk, evaluating, silent
from coda_models.fitting.regression import Affine, Regression, Thin
from coda_models.fitting.states import kept_states
from coda_models.layers.layer import CodaLayer
from coda_models.layers.low_rank import LowRank
from coda_models.model import CodaModel

RIDGE = 0.1
Decision = tuple[Tensor, Tensor, Tensor]  # indices, gates and used slots, [batch, K] each


@torch.no_grad()
def fit_stand_ins(
    model: CodaModel, batches: Batches, *, corrected: bool = True, ridge: float = RIDGE, progress: Progress = silent
) -> None:
    """Fit every stand-in, and the thin keys and values where a layer has some, in place; no labels are needed.

    Layers are fitted bottom first, each on the states that the routed model itself has by then, over the tokens that it
    does not route (each weighs 1 - g). A stand-in's target is what is missing: the dense model's state after the layer
    less the routed model's before it, so that a layer mends what those below it left. Keys and values go to those that
    the block makes of the dense model's state, as far as the routed model's state tells it.

    The states of all texts, two of the width for each token, wait in a temporary folder between layers (``TMPDIR``):
    computing them anew for each layer would take a model of n layers n / 2 times as long. Memory holds one batch, the
    sums of one layer, and which tokens it routes.

    Args:
        model: with stand-ins, its routers fitted. A layer at r = 1 leaves nothing to stand in for and keeps its own.
        corrected: without, targets are the layer's own update, keys and values of the routed model's state.
        ridge: weighs as much as ridge · width tokens.

    Raises:
        ConfigError: no stand-ins, no texts, fewer tokens than a rank needs, states that are NaN, or no room for them.
    """
    layers = list(model.coda_layers())
    if all(layer.stand_in is None for layer in layers):
        raise ConfigError("this model has no stand-ins to fit: add_stand_ins gives it some")
    walk = Walk(model, batches)
    with evaluating(model), kept_states() as states:
        for i, inputs in enumerate(walk):
            x, mask, table = model.embed(inputs)
            states.keep("mask", i, mask)
            states.keep("dense", i, x)
            states.keep("routed", i, x)
        like = x

        def read(name: str, batch: int) -> Tensor:
            return states.read(name, batch, like)

        for j, layer in enumerate(layers):
            progress("stand-ins", j, len(layers))
            fit = None
            if layer.stand_in is not None and layer.reduction != 1:
                fit = LayerFit(layer, j, corrected=corrected)
            decided: list[Decision | None] = []
            for i in range(len(walk)):
                before, x, mask = read("dense", i), read("routed", i), read("mask", i)
                table = model.table(x)
                after = layer.dense(before, mask, table)
                states.keep("dense", i, after)
                if fit is None:
                    decided.append(None)
                elif corrected:
                    read_of = layer.block.read
                    decided.append(fit.add(x, mask, after - x, read_of(before) - read_of(x)))
                else:
                    decided.append(fit.add(x, mask, layer.dense(x, mask, table) - x))
            if fit is not None:
                fit.solve(ridge)
            for i, decision in enumerate(decided):
                x, mask = read("routed", i), read("mask", i)
                states.keep("routed", i, layer(x, mask, model.table(x), decision)[0])
    progress("stand-ins", len(layers), len(layers))


class LayerFit:
    """Sums of one layer's regressions at its r, all of the same x.

    Args:
        layer: with a stand-in, its router fitted.
        index: of the layer, for messages.
        corrected: whether keys and values are to be those of another state than x.
    """

    def __init__(self, layer: CodaLayer, index: int, *, corrected: bool) -> None:
        assert layer.stand_in is not None
        self._layer, self._what, self._width = layer, f"layer {index}", len(layer.stand_in.down)
        self._corrected = corrected
        outputs = 2 * self._width if corrected else self._width
        self._sums = Regression(self._what, self._width, outputs, layer.stand_in.down.device)

    def add(self, x: Tensor, mask: Tensor, missed: Tensor, strayed: Tensor | None = None) -> Decision:
        """Add tokens as far as they are not routed.

        Args:
            x, missed: [batch, tokens, width]; mask: [batch, tokens] bool.
            strayed: what leads from what attention reads of x to what it is to read, [batch, tokens, width]; of a
                corrected fit alone.

        Returns:
            Which tokens are routed, as ``CodaLayer.forward`` takes it.
        """
        read = self._layer.block.read(x)
        _, indices, gates, used = self._layer.decide(read, mask)
        left = mask.double().scatter(1, indices, 1 - gates.double()) * mask
        wanted = missed[mask] if strayed is None else torch.cat([missed[mask], strayed[mask]], -1)
        self._sums.add(read[mask], wanted, left[mask])
        return indices, gates, used

    def solve(self, ridge: float) -> None:
        """Fill the layer's stand-in, and its thin keys and values.

        Raises:
            ConfigError: fewer tokens than a rank needs, or states that are NaN.
        """
        stand_in, thin, attention = self._layer.stand_in, self._layer.key_value, self._layer.block.attention
        assert stand_in is not None
        solved = self._sums.solve(ridge)
        missed = solved.part(slice(0, self._width))
        self._fill(stand_in, self._sums.thin(missed, self._rank("stand-ins", stand_in), ridge))
        if thin is not None:
            memory = _beside(attention.key, attention.value)
            if self._corrected:
                memory = solved.part(slice(self._width, None)).added().then(memory)
            self._fill(thin, self._sums.thin(memory, self._rank("keys and values", thin)))

    def _rank(self, what: str, low_rank: LowRank) -> int:
        rank, rows = low_rank.down.shape[1], self._sums.rows
        if rows <= rank:
            raise ConfigError(
                f"{self._what} leaves {rows} tokens of these texts, and {what} of rank {rank} need {rank + 1} or more: "
                "pass more texts, or a smaller rank"
            )
        return rank

    def _fill(self, low_rank: LowRank, fitted: Thin) -> None:
        for own, value in zip((low_rank.down, low_rank.up, low_rank.bias), fitted, strict=True):
            own.copy_(value)


def _beside(*products: nn.Linear) -> Affine:
    """What linear layers make of the same x, side by side."""
    weight = torch.cat([one.weight for one in products])
    bias = torch.cat([one.weight.new_zeros(len(one.weight)) if one.bias is None else one.bias for one in products])
    return Affine(weight.T.double(), bias.double())
