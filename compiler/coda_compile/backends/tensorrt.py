"""NVIDIA GPUs through onnxruntime's TensorRT provider."""

import onnx_ir as ir

from coda_compile.backends import Backend
from coda_compile.backends.operators import check_operators
from coda_compile.passes import Pass
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.fold_constants import FoldConstants
from coda_compile.passes.strip_export_metadata import StripExportMetadata
from coda_compile.passes.upstream import (
    EliminateCommonSubexpressions,
    EliminateIdentities,
    InlineFunctions,
    LiftConstants,
    RemoveUnused,
)
from coda_targets.runtimes.tensorrt import RUNTIME


class TensorrtBackend(Backend):
    """Standard operators alone: TensorRT parses neither functions nor onnxruntime's own operators."""

    def passes(self, *, pack: bool = False) -> list[Pass]:
        """Function bodies in the place of the ``ai.coda`` operators, and no fusions."""
        return [
            FoldConstants(),
            EliminateIdentities(),
            EliminateCommonSubexpressions(),
            RemoveUnused(),
            LiftConstants(),
            StripExportMetadata(),  # after the passes that write notes of their own
            AttachFunctions(),
            InlineFunctions(),
        ]

    def check(self, model: ir.Model) -> None:
        """Every operator is of the ONNX standard."""
        check_operators(model, self.name)


BACKEND = TensorrtBackend(
    runtime=RUNTIME,
    opset=20,
    precisions=("fp32", "fp16"),
    lacks="static sequence buckets with a constant k of at most 3840, and an engine cache",
)
