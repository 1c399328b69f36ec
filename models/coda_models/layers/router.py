"""The router: one vector per layer that scores tokens."""

import torch
from torch import Tensor, nn


class Router(nn.Module):
    """Scores ``s = x · w`` (Lei et al. 2023, section 4.1), always in float32.

    ``weight`` is [width, 1], a matrix, so that shape inference and quantisers see an ordinary product.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 1))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, tokens] float32, or float64 where the model is."""
        device = x.device.type
        if torch.is_autocast_enabled(device):  # mixed-precision training would round scores further than ε resolves
            with torch.autocast(device, enabled=False):
                return self._scores(x)
        return self._scores(x)

    def _scores(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.squeeze(x.to(wide) @ self.weight.to(wide), -1)
