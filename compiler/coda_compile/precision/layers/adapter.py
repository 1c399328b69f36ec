"""What stands beside layers, its linear layers quantised."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coda_models.layers.adapter import Adapter
from coda_models.layers.low_rank import LowRank


class QuantisedAdapter(nn.Module):
    """In the place of an adapter.

    Attributes:
        down, up: what ``make`` gives for its linear layers.
    """

    def __init__(self, adapter: Adapter, make: Callable[[nn.Linear], nn.Module]) -> None:
        super().__init__()
        self.down = make(_linear(adapter.down, adapter.down_bias))
        self.up = make(_linear(adapter.up, adapter.up_bias))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        y: Tensor = self.up(F.relu(self.down(x)))
        return y


class QuantisedLowRank(nn.Module):
    """In the place of a map of low rank.

    Attributes:
        down, up: what ``make`` gives for its linear layers.
    """

    def __init__(self, low_rank: LowRank, make: Callable[[nn.Linear], nn.Module]) -> None:
        super().__init__()
        self.down = make(_linear(low_rank.down, torch.zeros(low_rank.down.shape[1])))
        self.up = make(_linear(low_rank.up, low_rank.bias))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., outputs]."""
        y: Tensor = self.up(self.down(x))
        return y


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """The layer of a weight [inputs, outputs] and a bias."""
    inputs, outputs = weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")  # nothing to initialise
    linear.weight, linear.bias = nn.Parameter(weight.detach().T), nn.Parameter(bias.detach())
    return linear
