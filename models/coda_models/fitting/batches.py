"""Texts to fit on: batches that are walked several times."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from fractions import Fraction

import torch
from torch import Tensor

from coda_models.errors import ConfigError
from coda_models.model import CodaModel

Batches = Iterable[Mapping[str, Tensor]]  # inputs by name as CodaModel takes them, without labels
Progress = Callable[[str, int, int], None]  # what is being fitted, how many steps of it are done, of how many


def silent(what: str, done: int, steps: int) -> None:
    """Say nothing."""


class Walk:
    """Batches on a model's device, once for every ``for``.

    Raises:
        ConfigError: there are none, or they can be walked only once.
        InputError: while they are walked: an input that the model does not take, or lacks.
    """

    def __init__(self, model: CodaModel, batches: Batches) -> None:
        if isinstance(batches, Iterator):
            raise ConfigError("texts are walked several times, and an iterator gives them once: pass a list of batches")
        self._batches, self._signature = batches, model.signature
        self._device = next(model.parameters()).device
        self._count = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
        if not self._count:
            raise ConfigError("there are no texts to fit on: pass at least one batch")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self._batches:
            self._signature.check_names(batch)
            yield {name: tensor.to(self._device) for name, tensor in batch.items()}


@contextmanager
def evaluating(*models: CodaModel) -> Iterator[None]:
    """Models in evaluation mode for a while, whichever they are in."""
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, was in zip(models, training, strict=True):
            model.train(was)


@contextmanager
def at_r_1(model: CodaModel) -> Iterator[None]:
    """A model at r = 1 for a while."""
    layers = list(model.coda_layers())
    reductions = [layer.reduction for layer in layers]
    for layer in layers:
        layer.reduction = Fraction(1)
    try:
        yield
    finally:
        for layer, reduction in zip(layers, reductions, strict=True):
            layer.reduction = reduction


def check_finite(what: str, *sums: Tensor) -> None:
    """Refuse NaN and infinite sums.

    Raises:
        ConfigError: names what gave them.
    """
    if not all(bool(torch.isfinite(one).all()) for one in sums):
        raise ConfigError(f"{what} gives NaN or infinite values for these texts: the model is damaged, or overflows")
