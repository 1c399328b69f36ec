"""The models people train: CoDA layers, conversion of Hugging Face encoders, training, checkpoints."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coda_models.checkpoint import from_pretrained, load, save, save_pretrained
    from coda_models.config import CodaConfig
    from coda_models.conversion import convert
    from coda_models.model import CodaModel, CodaOutput

_HOMES = {
    "CodaConfig": "config",
    "CodaModel": "model",
    "CodaOutput": "model",
    "convert": "conversion",
    "from_pretrained": "checkpoint",
    "load": "checkpoint",
    "save": "checkpoint",
    "save_pretrained": "checkpoint",
}
__all__ = [
    "CodaConfig",
    "CodaModel",
    "CodaOutput",
    "convert",
    "from_pretrained",
    "load",
    "save",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch and transformers are slow to load."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"coda_models.{_HOMES[name]}"), name)
