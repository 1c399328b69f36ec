"""Replace the layers that a precision quantises, in place."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from coda_compile.errors import CompileError
from coda_compile.precision.layers.adapter import QuantisedAdapter
from coda_compile.precision.layers.embedding import Int8Embedding
from coda_models.model import CodaModel

_LARGE = 1 << 20  # numbers in a table from which quantising it is worth a difference: words, not positions


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
    """Replace the linear layers of the adapters beside layers.

    Raises:
        CompileError: a weight that is not finite.
    """
    for i, layer in enumerate(model.coda_layers()):
        if layer.adapter is not None:
            _check(layer.adapter.down, f"layer {i}", "adapter's down")
            _check(layer.adapter.up, f"layer {i}", "adapter's up")
            quantised = QuantisedAdapter(layer.adapter, make)
            setattr(layer, "adapter", quantised)  # noqa: B010  its type is the trained one's


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
