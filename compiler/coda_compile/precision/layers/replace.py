"""Replace the layers that a precision quantises, in place."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from coda_compile.errors import CompileError
from coda_compile.precision.layers.adapter import QuantisedAdapter, QuantisedLowRank
from coda_compile.precision.layers.embedding import Int8Embedding
from coda_models.model import CodaModel

_LARGE = 1 << 20  # numbers in a table from which quantising it is worth a difference: words, not positions

# Parts of a layer, what people call them, and what takes their places.
_BESIDE: tuple[tuple[str, str, Any], ...] = (
    ("adapter", "adapter", QuantisedAdapter),
    ("stand_in", "stand-in", QuantisedLowRank),
    ("key_value", "thin map", QuantisedLowRank),
)


def replace_linears(model: CodaModel, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace every linear layer of attention and feed-forward.

    Raises:
        CompileError: a weight that is not finite.
    """
    for i, layer in enumerate(model.coda_layers()):
        for part in (layer.block.attention, layer.block.feed_forward):
            for name, module in list(part.named_children()):
                if isinstance(module, nn.Linear):
                    _check(module.weight, f"layer {i}", name)
                    setattr(part, name, make(module))


def replace_adapters(model: CodaModel, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace the linear layers of what stands beside layers: adapters, stand-ins, and thin keys and values.

    A layer at r = 1 uses its adapter alone.

    Raises:
        CompileError: a weight that is not finite.
    """
    for i, layer in enumerate(model.coda_layers()):
        for name, what, quantised in _BESIDE if layer.reduction != 1 else _BESIDE[:1]:
            module = getattr(layer, name)
            if module is not None:
                _check(module.down, f"layer {i}", f"{what}'s down")
                _check(module.up, f"layer {i}", f"{what}'s up")
                setattr(layer, name, quantised(module, make))


def quantise_embeddings(model: CodaModel) -> None:
    """Quantise large embedding tables to int8.

    Raises:
        CompileError: a table that is not finite.
    """
    for parent in list(model.embeddings.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Embedding) and module.weight.numel() >= _LARGE:
                _check(module.weight, "the table of embeddings", name)
                setattr(parent, name, Int8Embedding(module))


def _check(weight: Tensor, where: str, name: str) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise CompileError(f"{where} cannot be quantised: its {name} has weights that are not finite")
