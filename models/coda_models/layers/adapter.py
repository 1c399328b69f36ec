"""The adapter: a bottleneck beside every layer."""

import torch
from torch import Tensor, nn

from coda_ops.adapter import adapter


class Adapter(nn.Module):
    """d → b → d with ReLU; starts as zero, so that a converted model equals its backbone before training."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(width, bottleneck))
        self.down_bias = nn.Parameter(torch.zeros(bottleneck))
        self.up = nn.Parameter(torch.zeros(bottleneck, width))
        self.up_bias = nn.Parameter(torch.zeros(width))
        nn.init.kaiming_uniform_(self.down.T, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Without the residual. [batch, tokens, width] -> the same shape."""
        return adapter(x, self.down, self.down_bias, self.up, self.up_bias)
