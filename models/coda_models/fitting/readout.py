"""A readout mended: what the head reads of the routed model, mapped to what it reads of the dense one."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from coda_models.errors import UnsupportedModelError
from coda_models.fitting.batches import Batches, Progress, Walk, at_r_1, evaluating, silent
from coda_models.fitting.regression import Affine, Regression
from coda_models.model import CodaModel
from coda_models.sentence import Dense, SentenceModule


@torch.no_grad()
def mend_readout(
    model: CodaModel, dense: CodaModel, batches: Batches, *, ridge: float = 0.1, progress: Progress = silent
) -> None:
    """Map what the head reads of the routed model to what it reads of the dense one, in place; no labels are needed.

    One ridge regression d → d, over texts or, where tokens are labelled, over valid tokens. It stands before the head's
    first product and is linear, so it becomes a part of that product and costs nothing. An embedding has no head: the
    map is folded into the Dense behind pooling, or becomes one.

    Args:
        model: routed, its routers and stand-ins fitted.
        dense: what it was made from, run at r = 1.
        ridge: pulls the map to the one that changes nothing; it weighs as much as ridge · width texts or tokens.

    Raises:
        ConfigError: no texts, or states that are NaN.
        UnsupportedModelError: the head begins with no product to fold it into.
    """
    walk = Walk(model, batches)
    with evaluating(model, dense), at_r_1(dense):
        first = next(iter(walk))
        own, wanted = _Reader(model, first), _Reader(dense, first)
        width = own.read(first).shape[-1]
        regression = Regression("the readout", width, width, next(model.parameters()).device)
        for done, inputs in enumerate(walk):
            progress("readout", done, len(walk))
            x = own.read(inputs)
            regression.add(x, wanted.read(inputs) - x)
    own.fold(regression.solve(ridge).added())
    progress("readout", len(walk), len(walk))


class _Reader:
    """What reads the pooled states of a model first: a product of its head, or what follows pooling."""

    def __init__(self, model: CodaModel, inputs: Mapping[str, Tensor]) -> None:
        self._model = model
        self._first = model.after_pooling if model.head is None else _first_product(model, inputs)

    def read(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What it is given for each text or, where tokens are labelled, for each valid token. [rows, width]"""
        ((_, given),) = _calls(self._model, inputs, [self._first])
        tokens = self._model.coda_config.task == "token-classification"
        return given[self._model.mask(inputs)] if tokens else given.flatten(0, -2)

    def fold(self, mended: Affine) -> None:
        """Read another map of what is given from now on."""
        if isinstance(self._first, nn.Linear):
            _fold(self._first, mended)
            return
        model, config = self._model, self._model.coda_config
        modules, built = list(config.modules), list(model.after_pooling)
        if not modules or modules[0].kind != "Dense":
            width = len(mended.bias)
            modules.insert(0, SentenceModule("Dense", width, width))
            built.insert(0, _identity(modules[0], next(model.parameters())))
        first = built[0]
        assert isinstance(first, Dense)
        _fold(first.linear, mended)
        modules[0] = replace(modules[0], bias=True)
        model.after_pooling = nn.Sequential(*built)
        model.coda_config = replace(config, modules=tuple(modules))


def _calls(model: CodaModel, inputs: Mapping[str, Tensor], modules: list[nn.Module]) -> list[tuple[nn.Module, Tensor]]:
    """Which of some modules are called for a batch, in order, and what each is given."""
    seen: list[tuple[nn.Module, Tensor]] = []
    hooks = [one.register_forward_pre_hook(lambda module, given: seen.append((module, given[0]))) for one in modules]
    try:
        model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _first_product(model: CodaModel, inputs: Mapping[str, Tensor]) -> nn.Linear:
    assert model.head is not None
    products: list[nn.Module] = [module for module in model.head.modules() if isinstance(module, nn.Linear)]
    called = [module for module, _ in _calls(model, inputs, products)]
    if not called or called.count(called[0]) > 1:
        raise UnsupportedModelError(
            f"the head of this {model.hf_config.model_type} model begins with no linear layer to fold the readout into"
        )
    first = called[0]
    assert isinstance(first, nn.Linear)
    return first


def _identity(about: SentenceModule, like: Tensor) -> Dense:
    made = Dense(about).to(like)
    nn.init.eye_(made.linear.weight)
    return made


def _fold(linear: nn.Linear, mended: Affine) -> None:
    """Let a linear layer read x · W + b where it has read x."""
    weight = linear.weight.double()
    bias = weight @ mended.bias + (0.0 if linear.bias is None else linear.bias.double())
    linear.weight.copy_(weight @ mended.weight.T)
    if linear.bias is None:
        linear.bias = nn.Parameter(bias.to(linear.weight))
    else:
        linear.bias.copy_(bias)
