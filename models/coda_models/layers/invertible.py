"""An invertible adapter of embeddings (Pfeiffer et al. 2020), by additive coupling (NICE, Dinh et al. 2015)."""

import torch
from torch import Tensor, nn

from coda_models.layers.bottleneck import activation_of
from coda_models.learned_parts import InvertibleForm


class Invertible(nn.Module):
    """Each half of a state is changed by what a network makes of the other; the change starts as zero.

    Args:
        width: of the states.
        form: of the adapter.
    """

    def __init__(self, width: int, form: InvertibleForm) -> None:
        super().__init__()
        self.halves = [width // 2, width - width // 2]
        self.first = _network(self.halves[1], form.first, self.halves[0], form.activation)
        self.second = _network(self.halves[0], form.second, self.halves[1], form.activation)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        one, other = torch.split(x, self.halves, -1)
        one = one + self.first(other)
        return torch.cat((one, other + self.second(one)), -1)


class Transformed(nn.Module):
    """Embeddings that go through an invertible adapter."""

    def __init__(self, embeddings: nn.Module, invertible: Invertible) -> None:
        super().__init__()
        self.embeddings, self.invertible = embeddings, invertible

    def forward(self, **inputs: Tensor) -> Tensor:
        """[batch, tokens] each -> [batch, tokens, width]."""
        embedded: Tensor = self.invertible(self.embeddings(**inputs))
        return embedded


def _network(inputs: int, hidden: int, outputs: int, activation: str) -> nn.Sequential:
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), activation_of(activation), last)
