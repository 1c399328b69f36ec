"""The models people train: CoDA layers, conversion of Hugging Face encoders, training, checkpoints."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coda_models.checkpoint import from_pretrained, load, save, save_pretrained
    from coda_models.config import CodaConfig
    from coda_models.conversion import convert
    from coda_models.fitting.readout import mend_readout
    from coda_models.fitting.route import route_model
    from coda_models.fitting.routers import fit_routers
    from coda_models.fitting.stand_ins import fit_stand_ins
    from coda_models.model import CodaModel, CodaOutput
    from coda_models.training.distill import distill

_HOMES = {
    "CodaConfig": "config",
    "CodaModel": "model",
    "CodaOutput": "model",
    "convert": "conversion",
    "distill": "training.distill",
    "fit_routers": "fitting.routers",
    "fit_stand_ins": "fitting.stand_ins",
    "from_pretrained": "checkpoint",
    "load": "checkpoint",
    "mend_readout": "fitting.readout",
    "route_model": "fitting.route",
    "save": "checkpoint",
    "save_pretrained": "checkpoint",
}
__all__ = [
    "CodaConfig",
    "CodaModel",
    "CodaOutput",
    "convert",
    "distill",
    "fit_routers",
    "fit_stand_ins",
    "from_pretrained",
    "load",
    "mend_readout",
    "route_model",
    "save",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch and transformers are slow to load."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"coda_models.{_HOMES[name]}"), name)
