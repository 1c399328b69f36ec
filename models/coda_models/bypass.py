"""Bypasses before routing: each learns, layer by layer, what its dense layer does to a token."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from coda_models.model import CodaModel


def bypass_loss(model: CodaModel, inputs: dict[str, Tensor], every: int = 1) -> Tensor:
    """How far bypasses are from the dense layers that they stand in for, and routers from finding where.

    Every layer reads what the dense model gives it, so that layers learn independently of each other and no gradient
    runs through a heavy one. A bypass is judged by the mean squared distance relative to the variance of the layer's
    output; a router by how well its scores follow, token by token, the logarithm of that distance.

    Args:
        model: at r = 1, with a bypass beside at least one layer.
        inputs: input_ids and attention_mask, [batch, tokens]; labels are not used.
        every: judge by one token of so many, from a random one on: neighbours have little new to say.
    """
    first = int(torch.randint(every, ()))
    valid = inputs["attention_mask"].bool()
    with torch.no_grad():
        states = model(inputs["input_ids"], inputs["attention_mask"], output_hidden_states=True).hidden_states
    losses = []
    for layer, (before, after) in zip(model.coda_layers(), pairwise(states), strict=True):
        if layer.bypass is None or layer.router is None:
            continue
        x, y = (state[valid][first::every].unsqueeze(0) for state in (before, after))  # [1, judged tokens, width]
        read = layer.block.read(x)
        distance = (layer.skipped(x, read) - y).square().mean(-1) / y.var()
        hard = distance.detach().clamp(min=1e-12).log()
        scores = layer.router(read)
        follows = (scores - scores.mean() - _SPREAD * (hard - hard.mean()) / hard.std().clamp(min=1e-6)).square().mean()
        losses.append(distance.mean() + follows)
    return torch.stack(losses).mean()


_SPREAD = 0.5  # of scores: far above ε, so that most gates are nearly open or shut and few tokens are undecided


class BypassTrainer(Trainer):  # type: ignore[misc]  # transformers ships no types here
    """Trains bypasses and routers alone, by ``bypass_loss``; the dense model stays as it is, to the bit."""

    def __init__(self, *args: Any, model: CodaModel, **kwargs: Any) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".bypass." in name or ".router." in name)
        super().__init__(*args, model=model, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's, then everything that CoDA trains is trainable again."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.model.freeze_backbone()

    def compute_loss(self, model: CodaModel, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """``bypass_loss``."""
        model.eval()  # no dropout: the layers are to be reproduced as they will run
        loss = bypass_loss(model, inputs, every=4)
        return (loss, {}) if return_outputs else loss
