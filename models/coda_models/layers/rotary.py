"""Rotary positions (Su et al. 2021), of tokens that know where they stood."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Rotary(nn.Module):
    """Turns queries and keys by their original positions.

    Args:
        cos, sin: of every position, [positions, head width / 2] each.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        super().__init__()
        self.register_buffer("cos", cos, persistent=False)  # the configuration says what they are
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor, positions: Tensor, heads: int) -> Tensor:
        """Number i of a head's first half and number i of its second are a pair, as in GPT-NeoX.

        Args:
            x: [batch, tokens, inner], heads side by side.
            positions: [batch or 1, tokens].

        Returns:
            The same shape.
        """
        batch, tokens, inner = x.shape
        first, second = x.view(batch, tokens, heads, inner // heads).chunk(2, -1)
        # [batch or 1, tokens, 1, half]; by an index, the exporter would make five nodes of a look-up
        cos, sin = (F.embedding(positions, table).unsqueeze(2) for table in (self.cos, self.sin))
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
        return turned.view(batch, tokens, inner)
