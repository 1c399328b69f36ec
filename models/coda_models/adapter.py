"""The adapter: a bottleneck beside every layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coda_ops.adapter import adapter


class Adapter(nn.Module):
    """d → b → d with ReLU; starts as zero, so that a converted model equals its backbone before training.

    With a span above 1, each of the b hidden channels also takes in its neighbours: a convolution over so many
    positions, centred, added to the channel itself. It is this project's, not the paper's: tokens that are not routed
    still see what stands beside them. It starts as zero too.
    """

    def __init__(self, width: int, bottleneck: int, span: int = 1) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(width, bottleneck))
        self.down_bias = nn.Parameter(torch.zeros(bottleneck))
        self.up = nn.Parameter(torch.zeros(bottleneck, width))
        self.up_bias = nn.Parameter(torch.zeros(width))
        self.mix = nn.Parameter(torch.zeros(bottleneck, span)) if span > 1 else None
        nn.init.kaiming_uniform_(self.down.T, a=5**0.5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Without the residual.

        Args:
            x: [batch, tokens, width].
            mask: [batch, tokens] bool; a token that is not valid is nobody's neighbour.

        Returns:
            [batch, tokens, width].
        """
        if self.mix is None:
            return adapter(x, self.down, self.down_bias, self.up, self.up_bias)
        hidden = F.relu(x @ self.down + self.down_bias).masked_fill(~mask.unsqueeze(-1), 0.0)
        bottleneck, span = self.mix.shape
        channels = hidden.transpose(1, 2)  # [batch, bottleneck, tokens]
        near = F.conv1d(channels, self.mix.unsqueeze(1), padding=span // 2, groups=bottleneck).transpose(1, 2)
        return (hidden + near) @ self.up + self.up_bias
