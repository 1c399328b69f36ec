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

    def forward(self, x: Tensor, beside: "Adapter | None" = None) -> Tensor:
        """Without the residual. [batch, tokens, width] -> the same shape.

        Args:
            beside: another one, whose result is added: both run as one of both their widths.
        """
        if beside is None:
            return adapter(x, self.down, self.down_bias, self.up, self.up_bias)
        return adapter(
            x,
            torch.cat([self.down, beside.down], 1),
            torch.cat([self.down_bias, beside.down_bias]),
            torch.cat([self.up, beside.up]),
            self.up_bias + beside.up_bias,
        )
