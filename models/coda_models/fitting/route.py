"""A dense model routed: fitted routers, stand-ins, a mended readout."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor

from coda_models.config import Reduction
from coda_models.conversion import add_stand_ins
from coda_models.errors import ConfigError, UnsupportedModelError
from coda_models.fitting.batches import Batches, Progress, silent
from coda_models.fitting.readout import mend_readout
from coda_models.fitting.routers import fit_routers
from coda_models.fitting.stand_ins import fit_stand_ins
from coda_models.model import CodaModel


def route_model(
    model: CodaModel,
    batches: Batches,
    *,
    reduction: Reduction | Sequence[Reduction] = 4,
    attention: str = "k_to_all",
    stand_in: int = 64,
    key_value_rank: int = 64,
    routed_layers: Sequence[int] | None = None,
    routers: Sequence[Tensor] | None = None,
    readout_batches: Batches | None = None,
    progress: Progress = silent,
) -> CodaModel:
    """A routed model that answers as a dense one does, fitted in closed form to texts without labels.

    Args:
        model: dense or run dense; not changed.
        batches: inputs by name; a few hundred texts like those that the model will see.
        reduction, attention, stand_in, routed_layers: as in ``CodaConfig``.
        key_value_rank: as in ``CodaConfig``; only ``k_to_all`` has a place for it.
        routers: weights that ``fitted_routers`` has given for this model, which are the same at every r; by default
            they are fitted to ``batches``.
        readout_batches: more texts for the readout, which is quick; by default the same.
        progress: told what is being fitted, steps done, and of how many.

    Returns:
        A new model in evaluation mode.

    Raises:
        ConfigError: options that contradict each other, no texts, too few tokens for a rank, or states that are NaN.
        UnsupportedModelError: a model that has stand-ins or an out-of-distribution detector already, or a head that the
            readout cannot be folded into.
    """
    check_dense(model)
    routed = deepcopy(model).eval()
    add_stand_ins(
        routed,
        reduction=reduction,
        stand_in=stand_in,
        attention=attention,
        key_value_rank=key_value_rank if attention == "k_to_all" else 0,
        routed_layers=routed_layers,
    )
    if routers is None:
        fit_routers(routed, batches, progress=progress)
    else:
        set_routers(routed, routers)
    fit_stand_ins(routed, batches, progress=progress)
    mend_readout(routed, model, batches if readout_batches is None else readout_batches, progress=progress)
    return routed


def fitted_routers(
    model: CodaModel, batches: Batches, *, by: str = "both", progress: Progress = silent
) -> list[Tensor]:
    """Weights of every layer's router, [width, 1] each, for several routed models of one dense one.

    Args:
        model, batches, progress: as for ``route_model``.
        by: as for ``fit_routers``.

    Raises:
        ConfigError, UnsupportedModelError: as ``route_model`` does.
    """
    check_dense(model)
    routed = deepcopy(model).eval()
    add_stand_ins(routed, reduction=1, stand_in=1)
    fit_routers(routed, batches, by=by, progress=progress)
    return [layer.router.weight.detach() for layer in routed.coda_layers() if layer.router is not None]


def check_dense(model: CodaModel) -> None:
    """Refuse a model that cannot be routed.

    Raises:
        UnsupportedModelError: it has stand-ins or an out-of-distribution detector already.
    """
    if model.coda_config.stand_in:
        raise UnsupportedModelError("this model has stand-ins already: route the dense one that it was made from")
    if model.ood is not None:
        raise UnsupportedModelError(
            "this model's out-of-distribution detector knows its dense states: route it without, then fit one again"
        )


@torch.no_grad()
def set_routers(model: CodaModel, weights: Sequence[Tensor]) -> None:
    """Give a model's routers the weights of ``fitted_routers``, in place.

    Raises:
        ConfigError: they are of another number of layers.
    """
    layers = list(model.coda_layers())
    if len(weights) != len(layers):
        raise ConfigError(f"routers of {len(weights)} layers were given, and the model has {len(layers)}")
    for layer, weight in zip(layers, weights, strict=True):
        if layer.router is not None:
            layer.router.weight.copy_(weight)
