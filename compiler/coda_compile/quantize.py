"""Precision: the frozen layers' matrix products in eight or four bits, and with either the word embeddings in eight.

int8 rounds weights once, each output by a scale of its own, and activations as they come, each token by a step of its
own; adapters beside layers too, which every token goes through. int4 rounds weights alone, for the size of the file.
Routers, gates, norms and head stay float32: they are small, and a router that is rounded routes other tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coda_compile.errors import CompileError
from coda_models.adapter import Adapter
from coda_models.model import CodaModel
from coda_ops import int4_linear, int8_linear

_LARGE = 1 << 18  # numbers in a table from which rounding it is worth a difference


class _Linear(nn.Module):
    """A frozen linear layer with rounded weights, in place of a float32 one."""

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


class Int8Linear(_Linear):
    """In eight bits: weight [inputs, outputs] uint8."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, *int8_linear.quantize(linear.weight.detach().T))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return int8_linear.int8_linear(x, self.weight, self.scale, self.bias)


class Int8Adapter(nn.Module):
    """In eight bits, in the place of an adapter."""

    def __init__(self, down: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.down, self.up = Int8Linear(down), Int8Linear(up)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        y: Tensor = self.up(F.relu(self.down(x)))
        return y


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """The layer of a weight [inputs, outputs] and a bias."""
    inputs, outputs = weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")  # nothing to initialise
    linear.weight, linear.bias = nn.Parameter(weight.detach().T), nn.Parameter(bias.detach())
    return linear


class Int4Linear(_Linear):
    """In four bits: weight [inputs / 2, outputs] uint8."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, *int4_linear.quantize(linear.weight.detach().T))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return int4_linear.int4_linear(x, self.weight, self.scale, self.bias)


class Int8Embedding(nn.Module):
    """A table in eight bits, each row by a scale of its own, in place of a float32 one."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        levels, scale = int8_linear.quantize(embedding.weight.detach().T)
        self.weight: Tensor
        self.scale: Tensor
        self.register_buffer("weight", levels.T.contiguous())  # [rows, width] uint8
        self.register_buffer("scale", scale.unsqueeze(1))  # [rows, 1]

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., width]."""
        return (F.embedding(ids, self.weight).float() - 128) * F.embedding(ids, self.scale)


_LINEARS: dict[str, type[Int8Linear] | type[Int4Linear]] = {"int8": Int8Linear, "int4": Int4Linear}


def quantize_model(model: CodaModel, precision: str, *, adapters: bool = True) -> None:
    """Round every product of attention and feed-forward, and large embedding tables, in place.

    Args:
        adapters: in int8 those beside layers too; not where tasks swap them.

    Raises:
        CompileError: a weight that is not finite, or an odd number of inputs in four bits.
    """
    linear = _LINEARS[precision]
    for i, layer in enumerate(model.coda_layers()):
        for part in (layer.block.attention, layer.block.feed_forward):
            for name, module in list(part.named_children()):
                if isinstance(module, nn.Linear):
                    _check(module, f"layer {i}", name)
                    if linear is Int4Linear and module.in_features % 2:
                        inputs = f"its {name} has {module.in_features} inputs, and int4 takes an even number"
                        raise CompileError(f"layer {i} cannot be quantised: {inputs}")
                    setattr(part, name, linear(module))
        if adapters and precision == "int8" and layer.adapter is not None:
            setattr(layer, "adapter", _rounded(layer.adapter, f"layer {i}"))  # noqa: B010  its type is the trained one's
    for parent in list(model.embeddings.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Embedding) and module.weight.numel() >= _LARGE:
                _check(module, "the table of embeddings", name)
                setattr(parent, name, Int8Embedding(module))


def _rounded(adapter: Adapter, where: str) -> Int8Adapter:
    down, up = _linear(adapter.down, adapter.down_bias), _linear(adapter.up, adapter.up_bias)
    _check(down, where, "adapter's down")
    _check(up, where, "adapter's up")
    return Int8Adapter(down, up)


def _check(module: nn.Linear | nn.Embedding, where: str, name: str) -> None:
    if not bool(torch.isfinite(module.weight).all()):
        raise CompileError(f"{where} cannot be quantised: its {name} has weights that are not finite")
