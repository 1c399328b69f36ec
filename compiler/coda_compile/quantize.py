"""Precision: the frozen layers' matrix products in eight bits.

Weights are rounded once, each output by a scale of its own; activations as they come, each token by a step of its own.
Routers, gates, norms, adapters, embeddings and head stay float32: they are small, and a router that is rounded routes
other tokens.
"""

import torch
from torch import Tensor, nn

from coda_compile.errors import CompileError
from coda_models.model import CodaModel
from coda_ops.int8_linear import int8_linear, quantize

PRECISIONS = ("fp32", "int8")


class Int8Linear(nn.Module):
    """A frozen linear layer in eight bits, in place of a float32 one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.no_grad():
            weight, scale = quantize(linear.weight.T)
            bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach().float()
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight.contiguous())  # [inputs, outputs] uint8
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return int8_linear(x, self.weight, self.scale, self.bias)


def quantize_layers(model: CodaModel) -> None:
    """Put every product of attention and feed-forward into eight bits, in place.

    Raises:
        CompileError: a weight that is not finite.
    """
    for i, layer in enumerate(model.coda_layers()):
        for part in (layer.block.attention, layer.block.feed_forward):
            for name, module in list(part.named_children()):
                if isinstance(module, nn.Linear):
                    if not bool(torch.isfinite(module.weight).all()):
                        raise CompileError(f"layer {i} cannot be quantised: its {name} has weights that are not finite")
                    setattr(part, name, Int8Linear(module))
