"""Compile conditional-adapter models into verified ONNX bundles."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coda_compile.options import CompileOptions
    from coda_compile.pipeline import compile
    from coda_compile.tune.choice import choose
    from coda_compile.tune.route import route
    from coda_compile.tune.route_options import RouteOptions
    from coda_compile.tune.train import train
    from coda_compile.tune.train_options import TrainOptions
    from coda_targets import Bundle

    __version__: str

_HOMES = {
    "Bundle": "coda_targets",
    "CompileOptions": "coda_compile.options",
    "RouteOptions": "coda_compile.tune.route_options",
    "TrainOptions": "coda_compile.tune.train_options",
    "choose": "coda_compile.tune.choice",
    "compile": "coda_compile.pipeline",
    "route": "coda_compile.tune.route",
    "train": "coda_compile.tune.train",
}
__all__ = [
    "Bundle",
    "CompileOptions",
    "RouteOptions",
    "TrainOptions",
    "__version__",
    "choose",
    "compile",
    "route",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: onnxruntime and torch are slow to load."""
    if name == "__version__":
        return import_module("importlib.metadata").version("coda-compile")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
