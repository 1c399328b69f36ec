"""A frozen linear layer whose weight is quantised."""

from typing import ClassVar

import torch
from torch import Tensor, nn


class QuantisedLinear(nn.Module):
    """In place of a float32 linear layer; each precision has one of its own.

    Args:
        weight, scale: quantised, as the precision's operator takes them.

    Attributes:
        quantises_input: whether activations are quantised too, so that their last bit may decide between two integers.
        bias: [outputs] float32.
    """

    quantises_input: ClassVar[bool] = False

    def __init__(self, linear: nn.Linear, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach().float()
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
