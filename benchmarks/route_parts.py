"""What stands in a routed model's place in the rows of route_rows.py: routers by a rule, stand-ins that bend."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coda_models.layers.layer import Block, CodaLayer
from coda_models.layers.low_rank import LowRank
from coda_models.model import CodaModel

DEVIATION = 0.3  # of the scores within a text, as ``fit_routers`` has it
_EPOCHS, _ROWS, _RATE = 10, 512, 1e-3  # of the regression of bent stand-ins: passes, tokens a step, Adam's rate


class Ranked(nn.Module, ABC):
    """A router of another kind: scores of a text by a rule, with the deviation of fitted ones."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = [block]  # no part of it

    def forward(self, read: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, tokens]"""
        scores = self.rule(read).float()
        return DEVIATION * (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp(min=1e-6)

    @abstractmethod
    def rule(self, read: Tensor) -> Tensor:
        """What tokens are ranked by. [batch, tokens]"""


class First(Ranked):
    """The first k tokens."""

    def rule(self, read: Tensor) -> Tensor:
        return -torch.arange(read.shape[1]).expand(read.shape[:2])


class Norm(Ranked):
    """Those of the largest states."""

    def rule(self, read: Tensor) -> Tensor:
        return read.norm(dim=-1)


class Received(Ranked):
    """Those that the layer itself attends to, mean over heads and queries; padding, of which there is little, too."""

    def rule(self, read: Tensor) -> Tensor:
        attention = self.block[0].attention
        query, key = (
            product(read).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for product in (attention.query, attention.key)
        )
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        return logits.softmax(-1).mean((1, 2))


RULES = {"first": First, "norm": Norm, "received": Received}


def route_by(model: CodaModel, rule: str) -> None:
    """Give every layer a router that goes by one of ``RULES``."""
    for layer in model.coda_layers():
        layer.router = RULES[rule](layer.block)  # type: ignore[assignment]  # it is called alike


class Bent(nn.Module):
    """The first half of a linear stand-in, and as many ReLU units beside it as it leaves: as many multiply-adds."""

    def __init__(self, linear: LowRank) -> None:
        super().__init__()
        width, rank = linear.down.shape
        kept = rank // 2
        self.straight = LowRank(width, kept, linear.up.shape[1])
        with torch.no_grad():
            self.straight.down.copy_(linear.down[:, :kept])
            self.straight.up.copy_(linear.up[:kept])
            self.straight.bias.copy_(linear.bias)
        self.bend = nn.Linear(width, rank - kept)
        self.out = nn.Linear(rank - kept, linear.up.shape[1], bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, read: Tensor) -> Tensor:
        """[..., width] -> [..., width]"""
        y: Tensor = self.straight(read) + self.out(F.relu(self.bend(read)))
        return y


def bend_stand_ins(model: CodaModel, dense: CodaModel, batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Let every linear stand-in of a fitted model bend, by regression on states in layer order, as it was fitted."""
    embedded = [model.embed(inputs) for inputs in batches]
    routed = exact = [x.detach() for x, _, _ in embedded]
    for layer, whole in zip(model.coda_layers(), dense.coda_layers(), strict=True):
        with torch.no_grad():
            masks, tables = ([one[i] for one in embedded] for i in (1, 2))
            exact = [whole.dense(*one) for one in zip(exact, masks, tables, strict=True)]
        assert layer.stand_in is not None
        layer.stand_in = Bent(layer.stand_in)  # type: ignore[assignment]  # it is called alike
        _regress(layer, routed, masks, exact)
        with torch.no_grad():
            routed = [layer(*one)[0] for one in zip(routed, masks, tables, strict=True)]


def _regress(layer: CodaLayer, routed: Sequence[Tensor], masks: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Adam on the squared distance from the dense model's states, of tokens as far as they are not routed."""
    read, missed, left = [], [], []
    with torch.no_grad():
        for x, mask, wanted in zip(routed, masks, exact, strict=True):
            seen = layer.block.read(x)
            decided = layer.decide(seen, mask)
            weight = mask.float().scatter(1, decided.indices, 1 - decided.gates) * mask
            read.append(seen[mask])
            missed.append((wanted - x)[mask])
            left.append(weight[mask])
    given, target, weight = (torch.cat(parts) for parts in (read, missed, left))
    stand_in = layer.stand_in
    assert stand_in is not None
    steps = _EPOCHS * -(-len(given) // _ROWS)
    adam = torch.optim.Adam(stand_in.parameters(), _RATE)
    falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, steps)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(given)).split(_ROWS):
            distance = (stand_in(given[rows]) - target[rows]).square().mean(-1)
            adam.zero_grad()
            (distance * weight[rows]).mean().backward()
            adam.step()
            falling.step()
