"""An int8 embedding table."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coda_ops import int8_linear


class Int8Embedding(nn.Module):
    """In place of a float32 table, with a scale per row.

    Attributes:
        weight: [rows, width] int8, signed unlike that of a linear layer: what is looked up needs its scale alone.
        scale: [rows, 1] float32.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        quantised, scale = int8_linear.quantise(embedding.weight.detach().T)
        self.weight: Tensor
        self.scale: Tensor
        self.register_buffer("weight", (quantised.T.to(torch.int16) - int8_linear.ZERO_POINT).to(torch.int8))
        self.register_buffer("scale", scale.unsqueeze(1))

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., width]."""
        return F.embedding(ids, self.weight).float() * F.embedding(ids, self.scale)
