"""Where a compiled model runs: runtimes, one file a target, and opening and running bundles.

Needs onnxruntime and numpy alone; tokenizers and onnx are imported where text or routing decisions are asked for.
"""

from coda_targets.bundle import Bundle
from coda_targets.errors import BundleError, TargetError
from coda_targets.runtimes import Runtime, get_runtime, runtime_names

__all__ = ["Bundle", "BundleError", "Runtime", "TargetError", "get_runtime", "runtime_names"]
