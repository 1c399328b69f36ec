"""Compile conditional-adapter models into verified ONNX bundles."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from coda_targets import Bundle

if TYPE_CHECKING:
    from coda_compile.pipeline import compile

__all__ = ["Bundle", "__version__", "compile"]

__version__ = version("coda-compile")


def __getattr__(name: str) -> Any:
    """Import the compiler, and torch with it, when it is asked for."""
    if name != "compile":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from coda_compile.pipeline import compile

    return compile
