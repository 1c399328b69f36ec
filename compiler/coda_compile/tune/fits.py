"""What is fitted to a dense model: its routers once, and the rest of each model that is made of it."""

from collections.abc import Sequence

from coda_compile.tune.route_options import Reductions, RouteOptions
from coda_compile.tune.texts import Batch
from coda_models.fitting.batches import Progress
from coda_models.fitting.route import fitted_routers, route_model
from coda_models.fitting.sensitivity import Sensitivity, sensitivity
from coda_models.model import CodaModel


class Fits:
    """Routed models of a dense one, which share their routers.

    Args:
        dense: run at r = 1; not changed.
        options: how, for all of them.
        fit, readout: texts, as ``coda_compile.tune.texts.Split`` has them.
        progress: told what is being fitted, steps done, and of how many.

    Raises:
        CodaError: what stands in the way of fitting routers.
    """

    def __init__(
        self,
        dense: CodaModel,
        options: RouteOptions,
        fit: Sequence[Batch],
        readout: Sequence[Batch],
        progress: Progress,
    ) -> None:
        self._dense, self._options, self._progress = dense, options, progress
        self._fit, self._readout = ([batch.inputs for batch in some] for some in (fit, readout))
        self._routers = fitted_routers(dense, self._fit, progress=progress)

    def routed(self, reduction: Reductions) -> CodaModel:
        """One at some r; a layer at r = 1 is left as it is, without anything that stands for it.

        Raises:
            CodaError: what stands in the way.
        """
        config = self._options.config(reduction)
        reductions = config.layer_reductions(len(self._dense.layers))
        return route_model(
            self._dense,
            self._fit,
            reduction=config.reduction,
            attention=config.attention,
            stand_in=config.stand_in,
            key_value_rank=config.key_value_rank,
            routed_layers=[i for i, r in enumerate(reductions) if r != 1],
            routers=self._routers,
            readout_batches=self._readout,
            progress=self._progress,
        )

    def sensitivity(self) -> Sensitivity:
        """What each layer loses at each r.

        Raises:
            CodaError: what stands in the way.
        """
        config = self._options.config(2)
        return sensitivity(
            self._dense,
            self._fit,
            attention=config.attention,
            stand_in=config.stand_in,
            key_value_rank=config.key_value_rank,
            routers=self._routers,
            progress=self._progress,
        )
