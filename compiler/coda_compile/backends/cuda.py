"""NVIDIA GPUs through onnxruntime's CUDA provider."""

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from coda_compile.backends import Backend
from coda_compile.backends.cuda_kernels import check_kernels
from coda_compile.backends.operators import ONNX, check_operators
from coda_compile.passes import Pass
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.convert_to_half import ConvertToHalf
from coda_compile.passes.eliminate_identities import EliminateIdentities
from coda_compile.passes.fold_constants import FoldConstants
from coda_compile.passes.fuse_attention import FuseAttention
from coda_compile.passes.fuse_projections import FuseProjections
from coda_compile.passes.fuse_put_differences import FusePutDifferences
from coda_compile.passes.make_sizes_on_device import MakeSizesOnDevice
from coda_compile.passes.merge_low_rank import MergeLowRank
from coda_compile.passes.pack_rows import PackRows
from coda_compile.passes.prune_heads import PruneHeads
from coda_compile.passes.share_slot_masks import ShareSlotMasks
from coda_compile.passes.strip_export_metadata import StripExportMetadata
from coda_compile.passes.trim_to_readout import TrimToReadout
from coda_compile.passes.upstream import (
    EliminateCommonSubexpressions,
    LiftConstants,
    RemoveUnused,
)
from coda_ops import RUNTIME_DOMAIN
from coda_targets import TargetError
from coda_targets.proofs import PLACEMENT, ProofInfo
from coda_targets.runtimes.cuda import RUNTIME
from coda_targets.runtimes.session import open_session, place
from coda_targets.signature import Signature


class CudaBackend(Backend):
    """Onnxruntime's fused attention; sums with their norms and GELUs with their biases it fuses itself."""

    def passes(self, *, pack: bool = False, half: bool = False) -> list[Pass]:
        """Fuse attention, and leave in standard operators what the provider fuses or no kernel of ours computes."""
        return [
            FoldConstants(),
            EliminateIdentities(),
            MergeLowRank(),
            FuseAttention(),
            PruneHeads(),
            TrimToReadout(),
            FuseProjections(),
            *([PackRows()] if pack else []),  # once projections are one linear
            FusePutDifferences(blend=False),  # our kernels for CUDA have PutDifference
            ShareSlotMasks(),
            EliminateCommonSubexpressions(),
            RemoveUnused(),
            LiftConstants(),
            MakeSizesOnDevice(),
            *([ConvertToHalf()] if half else []),  # once constants are initializers
            StripExportMetadata(),  # after the passes that write notes of their own
            AttachFunctions(runtime=RUNTIME.name),
        ]

    def check(self, model: ir.Model) -> None:
        """The provider has a kernel of every operator, in function bodies too, for the types that it has there."""
        check_operators(model, self.name, standards=(ONNX,), own=(RUNTIME_DOMAIN,))
        check_kernels(model, self.name)

    def prove(self, path: Path, signature: Signature) -> tuple[ProofInfo, ...]:
        """Where there is a GPU, that no node copies between it and the CPU: a session for CUDA graphs opens.

        That nothing but shapes is computed on the CPU is checked whenever a session is made.
        """
        if not self.runs_here():
            return ()
        try:
            open_session(path, replace(self.runtime, cuda_graph=True))
        except TargetError:
            return ()  # it runs all the same
        return (ProofInfo(PLACEMENT, place(self.runtime)),)


BACKEND = CudaBackend(
    runtime=RUNTIME,
    opset=20,
    precisions=("fp32", "fp16"),
    packs_rows=True,
    swaps_tasks=True,
)
