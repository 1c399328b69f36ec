"""Torch's quantised linear modules, computed as a target computes them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from coda_compile.backends import Linear


@contextmanager
def computed_as(model: nn.Module, forms: Mapping[type[nn.Module], Linear]) -> Iterator[None]:
    """Have every module of some classes compute what a target computes instead of its own."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> Tensor:
        return forms[type(module)](module, inputs[0])

    hooks = [module.register_forward_hook(hook) for module in model.modules() if type(module) in forms]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
