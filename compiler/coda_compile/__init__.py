"""Compile conditional-adapter models into verified ONNX bundles."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coda_compile.pipeline import compile
    from coda_compile.tune.choice import choose
    from coda_targets import Bundle

_HOMES = {"Bundle": "coda_targets", "choose": "coda_compile.tune.choice", "compile": "coda_compile.pipeline"}
__all__ = ["Bundle", "__version__", "choose", "compile"]

__version__ = version("coda-compile")


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: onnxruntime and torch are slow to load."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
