"""Where a compiled model runs: runtimes, one file a target, input signatures, and opening and running bundles.

Running one needs onnxruntime and numpy alone; tokenizers and onnx are imported where text or routing decisions are
asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coda_targets.bundle import Bundle
    from coda_targets.errors import BundleError, TargetError
    from coda_targets.runtimes import Runtime, get_runtime, runtime_names
    from coda_targets.signature import Input, Signature

_HOMES = {
    "Bundle": "bundle",
    "BundleError": "errors",
    "Input": "signature",
    "Runtime": "runtimes",
    "Signature": "signature",
    "TargetError": "errors",
    "get_runtime": "runtimes",
    "runtime_names": "runtimes",
}
__all__ = ["Bundle", "BundleError", "Input", "Runtime", "Signature", "TargetError", "get_runtime", "runtime_names"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: training declares signatures and needs no onnxruntime."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"coda_targets.{_HOMES[name]}"), name)
