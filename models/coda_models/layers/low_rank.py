"""A linear map of low rank, for what tokens that are not routed miss."""

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """d → q → outputs with a bias and nothing between; starts as zero.

    ``down`` is [width, rank], ``up`` [rank, outputs] and ``bias`` [outputs].
    """

    def __init__(self, width: int, rank: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(width, rank))
        self.up = nn.Parameter(torch.zeros(rank, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.down.T, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., outputs]."""
        return x @ self.down @ self.up + self.bias
