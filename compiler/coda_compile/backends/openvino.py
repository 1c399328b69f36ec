"""Intel CPUs through OpenVINO, as a plugin of onnxruntime."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import nn

from coda_compile.backends import Backend, Linear, openvino_rounding
from coda_compile.backends.operators import check_operators
from coda_compile.passes import Pass
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.dequantize_weights import DequantizeWeights
from coda_compile.passes.eliminate_identities import EliminateIdentities
from coda_compile.passes.fold_constants import FoldConstants
from coda_compile.passes.insert_scale_barriers import InsertScaleBarriers
from coda_compile.passes.lower_static_linears import LowerStaticLinears
from coda_compile.passes.merge_low_rank import MergeLowRank
from coda_compile.passes.share_slot_masks import ShareSlotMasks
from coda_compile.passes.strip_export_metadata import StripExportMetadata
from coda_compile.passes.upstream import (
    EliminateCommonSubexpressions,
    LiftConstants,
    RemoveUnused,
)
from coda_compile.precision.int8 import Int8Linear
from coda_compile.precision.int8_static import Int8StaticLinear
from coda_targets.runtimes.openvino import RUNTIME


class OpenvinoBackend(Backend):
    """Standard operators, which OpenVINO fuses by itself, with function bodies that it runs fast."""

    def passes(self, *, pack: bool = False, half: bool = False) -> list[Pass]:
        """Leave attention and norms in standard operators: OpenVINO takes onnxruntime's own apart again."""
        return [
            FoldConstants(),
            EliminateIdentities(),
            MergeLowRank(),
            DequantizeWeights(),
            LowerStaticLinears(),
            InsertScaleBarriers(),
            ShareSlotMasks(),
            EliminateCommonSubexpressions(),
            RemoveUnused(),
            LiftConstants(),
            StripExportMetadata(),  # after the passes that write notes of their own
            AttachFunctions(runtime=RUNTIME.name),
        ]

    def check(self, model: ir.Model) -> None:
        """Every operator is of the ONNX standard, or has a body of such."""
        check_operators(model, self.name)

    def gate_tolerance(self, scores: NDArray[np.float32], epsilon: float) -> float:
        """OpenVINO iterates in float32 where others do in float64: four roundings of the widest score, over ε.

        Measured: 3.9e-6 over 512 tokens whose scores span 2 at ε = 0.03, where this allows 1.6e-5.
        """
        return 4 * 2.0**-24 * float(np.ptp(scores)) / epsilon

    def linears_as_written(self) -> Mapping[type[nn.Module], Linear]:
        """Int8 weights beside float32 activations: how those are quantised is left to the processor."""
        return {Int8Linear: openvino_rounding.grouped(0)}

    def linears_as_run(self, model: nn.Module) -> Mapping[type[nn.Module], Linear]:
        """Activations quantised as OpenVINO does it on this machine, where the model has such modules."""
        found: dict[type[nn.Module], Linear] = {}
        if any(isinstance(one, Int8Linear) for one in model.modules()):
            found[Int8Linear] = openvino_rounding.grouped(openvino_rounding.group_of(self.runtime))
        if any(isinstance(one, Int8StaticLinear) for one in model.modules()) and openvino_rounding.by_range(
            self.runtime
        ):
            found[Int8StaticLinear] = openvino_rounding.linear_by_range
        return found


BACKEND = OpenvinoBackend(runtime=RUNTIME, opset=20, precisions=("fp32", "int8", "int8-static"))
