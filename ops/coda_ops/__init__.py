"""The CoDA operator set, domain ``ai.coda`` version 1: what the operators mean.

One module an operator, each holding its torch operator, its ONNX schema and its ONNX function body side by side.
Importing this package is cheap; ``coda_ops.route`` and its siblings import torch.
"""

from coda_ops.errors import CodaError

__all__ = ["DOMAIN", "RUNTIME_DOMAIN", "VERSION", "CodaError"]

DOMAIN = "ai.coda"
VERSION = 1
RUNTIME_DOMAIN = "com.microsoft"  # of onnxruntime's own operators: in every build of it, unknown to other runtimes
