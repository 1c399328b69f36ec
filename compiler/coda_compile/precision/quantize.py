"""Precision: the frozen layers' matrix products in eight or four bits, and with either the word embeddings in eight.

int8 rounds weights once, each output by a scale of its own, and activations as they come, each token by a step of its
own; adapters beside layers too, which every token goes through. int8-static rounds all that a product multiplies by one
step, measured beforehand on texts. int4 rounds weights alone, for the size of the file. Routers, gates, norms and head
stay float32: they are small, and a router that is rounded routes other tokens.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coda_compile.errors import CompileError
from coda_models.layers.adapter import Adapter
from coda_models.model import CodaModel
from coda_ops import int4_linear, int8_linear, int8_static_linear

STATIC = "int8-static"  # the precision that takes texts
_LARGE = 1 << 20  # numbers in a table from which rounding it is worth a difference: words, not positions


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


class Int8StaticLinear(_Linear):
    """In eight bits, activations by one step: weight [inputs, outputs] int8."""

    def __init__(self, linear: nn.Linear, low: float, high: float) -> None:
        super().__init__(linear, *int8_static_linear.quantize(linear.weight.detach().T))
        step, zero = int8_static_linear.rounding_of(low, high)
        self.step: Tensor
        self.zero: Tensor
        self.register_buffer("step", step)
        self.register_buffer("zero", zero)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return int8_static_linear.int8_static_linear(x, self.weight, self.scale, self.bias, self.step, self.zero)


class _Observed(nn.Module):
    """A linear layer that remembers the range of what it has multiplied."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.low, self.high = linear, torch.tensor(math.inf), torch.tensor(-math.inf)

    def forward(self, x: Tensor) -> Tensor:
        low, high = torch.aminmax(x)
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        y: Tensor = self.linear(x)
        return y


class RoundedAdapter(nn.Module):
    """In the place of an adapter, its products as ``make`` rounds them."""

    def __init__(self, down: nn.Linear, up: nn.Linear, make: Callable[[nn.Linear], nn.Module]) -> None:
        super().__init__()
        self.down, self.up = make(down), make(up)

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
        # Signed, unlike a product's weights: what is looked up needs no more than its scale.
        self.register_buffer("weight", (levels.T.to(torch.int16) - 128).to(torch.int8))  # [rows, width]
        self.register_buffer("scale", scale.unsqueeze(1))  # [rows, 1]

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., width]."""
        return F.embedding(ids, self.weight).float() * F.embedding(ids, self.scale)


_LINEARS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "int8": Int8Linear,
    STATIC: _Observed,
    "int4": Int4Linear,
}


def quantize_model(
    model: CodaModel, precision: str, *, adapters: bool = True, texts: Iterable[Mapping[str, Tensor]] = ()
) -> None:
    """Round every product of attention and feed-forward, and large embedding tables, in place.

    Args:
        adapters: in int8 those beside layers too; not where tasks swap them.
        texts: the model's inputs, batch by batch without padding, for int8-static: the range of what each product
            multiplies in them becomes its 256 levels.

    Raises:
        CompileError: a weight that is not finite, an odd number of inputs in four bits, or a product that no text of
            int8-static's reaches.
    """
    make = _LINEARS[precision]
    for i, layer in enumerate(model.coda_layers()):
        for part in (layer.block.attention, layer.block.feed_forward):
            for name, module in list(part.named_children()):
                if isinstance(module, nn.Linear):
                    _check(module, f"layer {i}", name)
                    if make is Int4Linear and module.in_features % 2:
                        inputs = f"its {name} has {module.in_features} inputs, and int4 takes an even number"
                        raise CompileError(f"layer {i} cannot be quantised: {inputs}")
                    setattr(part, name, make(module))
        if adapters and make is not Int4Linear and layer.adapter is not None:
            rounded = _rounded(layer.adapter, make, f"layer {i}")
            setattr(layer, "adapter", rounded)  # noqa: B010  its type is the trained one's
    for parent in list(model.embeddings.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Embedding) and module.weight.numel() >= _LARGE:
                _check(module, "the table of embeddings", name)
                setattr(parent, name, Int8Embedding(module))
    if precision == STATIC:
        _calibrate(model, texts)


@torch.inference_mode()
def _calibrate(model: CodaModel, texts: Iterable[Mapping[str, Tensor]]) -> None:
    """Give every observed product the levels that the texts ask for."""
    for inputs in texts:
        model(**inputs)
    for path, parent in list(model.named_modules()):
        for name, module in list(parent.named_children()):
            if not isinstance(module, _Observed):
                continue
            low, high = float(module.low), float(module.high)
            if not (math.isfinite(low) and math.isfinite(high)):
                what = "nothing" if low > high else "numbers that are not finite"
                raise CompileError(f"{path}.{name} multiplies {what} in the texts to calibrate with: give others")
            setattr(parent, name, Int8StaticLinear(module.linear, low, high))


def _rounded(adapter: Adapter, make: Callable[[nn.Linear], nn.Module], where: str) -> RoundedAdapter:
    down, up = _linear(adapter.down, adapter.down_bias), _linear(adapter.up, adapter.up_bias)
    _check(down, where, "adapter's down")
    _check(up, where, "adapter's up")
    return RoundedAdapter(down, up, make)


def _check(module: nn.Linear | nn.Embedding, where: str, name: str) -> None:
    if not bool(torch.isfinite(module.weight).all()):
        raise CompileError(f"{where} cannot be quantised: its {name} has weights that are not finite")
