"""Any CPU, through onnxruntime's own kernels: the default target."""

import onnx_ir as ir

from coda_compile.backends import Backend
from coda_compile.backends.operators import ONNX, ONNX_ML, check_operators
from coda_compile.passes import Pass
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.eliminate_identities import EliminateIdentities
from coda_compile.passes.fold_constants import FoldConstants
from coda_compile.passes.fuse_adapters import FuseAdapters
from coda_compile.passes.fuse_attention import FuseAttention
from coda_compile.passes.fuse_embeddings import FuseEmbeddings
from coda_compile.passes.fuse_gelus import FuseGelus
from coda_compile.passes.fuse_k_to_all import FuseKToAll
from coda_compile.passes.fuse_norms import FuseNorms
from coda_compile.passes.fuse_projections import FuseProjections
from coda_compile.passes.fuse_put_differences import FusePutDifferences
from coda_compile.passes.fuse_routers import FuseRouters
from coda_compile.passes.lower_static_linears import LowerStaticLinears
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
from coda_targets.runtimes.cpu import RUNTIME


class OnnxruntimeBackend(Backend):
    """What onnxruntime's own providers share: its operators, and function bodies for those of ``ai.coda``."""

    def passes(self, *, pack: bool = False, half: bool = False) -> list[Pass]:
        """Fuse what onnxruntime, or a native kernel, computes at once."""
        return [
            FoldConstants(),
            EliminateIdentities(),
            MergeLowRank(),
            FuseAttention(),
            PruneHeads(),
            TrimToReadout(),
            FuseKToAll(),
            FuseProjections(),
            *([PackRows()] if pack else []),  # once projections are one linear, and before the rest is fused
            LowerStaticLinears(),
            FuseAdapters(),
            FuseRouters(),
            FuseGelus(),
            FuseEmbeddings(),
            FuseNorms(),
            FusePutDifferences(),
            ShareSlotMasks(),
            EliminateCommonSubexpressions(),
            RemoveUnused(),
            LiftConstants(),
            StripExportMetadata(),  # after the passes that write notes of their own
            AttachFunctions(),
        ]

    def check(self, model: ir.Model) -> None:
        """Every operator is of the ONNX standard, onnxruntime's own, or has a body."""
        check_operators(model, self.name, standards=(ONNX, ONNX_ML), own=(RUNTIME_DOMAIN,))


BACKEND = OnnxruntimeBackend(
    runtime=RUNTIME,
    opset=20,
    precisions=("fp32", "int8", "int8-static", "int4"),
    packs_rows=True,
    swaps_tasks=True,
)
