"""Where a compiled model runs: targets, one file each, and opening and running bundles.

Needs onnxruntime and numpy alone; tokenizers and onnx are imported where text or routing decisions are asked for.
"""

from coda_targets.bundle import Bundle
from coda_targets.errors import BundleError, TargetError
from coda_targets.runtimes.target import Target, get_target, target_names

__all__ = ["Bundle", "BundleError", "Target", "TargetError", "get_target", "target_names"]
