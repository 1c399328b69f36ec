"""NVIDIA GPUs through TensorRT: onnxruntime's provider of TensorRT 10, and what TensorRT-RTX shares with it."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from coda_compile.backends import Backend
from coda_compile.backends.operators import check_operators
from coda_compile.backends.tensorrt_operators import check_parser, check_slots
from coda_compile.passes import Pass
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.cast_cumulative_sums import CastCumulativeSums
from coda_compile.passes.convert_to_half import ConvertToHalf
from coda_compile.passes.eliminate_identities import EliminateIdentities
from coda_compile.passes.fold_constants import FoldConstants
from coda_compile.passes.fuse_put_differences import FusePutDifferences
from coda_compile.passes.merge_low_rank import MergeLowRank
from coda_compile.passes.share_slot_masks import ShareSlotMasks
from coda_compile.passes.strip_export_metadata import StripExportMetadata
from coda_compile.passes.upstream import (
    EliminateCommonSubexpressions,
    LiftConstants,
    RemoveUnused,
)
from coda_targets.runtimes.tensorrt import RUNTIME


class TensorrtBackend(Backend):
    """Standard operators, which TensorRT fuses by itself, with bodies that need no float64."""

    def passes(self, *, pack: bool = False, half: bool = False) -> list[Pass]:
        """Leave attention, norms and activations in standard operators, of which engines have the fewest kernels."""
        return [
            FoldConstants(),
            EliminateIdentities(),
            MergeLowRank(),
            CastCumulativeSums(),
            FusePutDifferences(),
            ShareSlotMasks(),
            EliminateCommonSubexpressions(),
            RemoveUnused(),
            LiftConstants(),
            *([ConvertToHalf()] if half else []),  # once constants are initializers
            StripExportMetadata(),  # after the passes that write notes of their own
            AttachFunctions(runtime=RUNTIME.name),
        ]

    def check(self, model: ir.Model) -> None:
        """The parser takes every operator, of function bodies too, and the builder as many slots as there can be."""
        check_operators(model, self.name)
        check_parser(model, self.name)
        if self.runtime.profile is not None:
            check_slots(model, self.name, self.runtime.profile)

    def gate_tolerance(self, scores: NDArray[np.float32], epsilon: float) -> float:
        """It iterates in float32 where others do in float64: four roundings of the widest score, over ε."""
        return 4 * 2.0**-24 * float(np.ptp(scores)) / epsilon


BACKEND = TensorrtBackend(runtime=RUNTIME, opset=20, precisions=("fp32", "fp16"))
