"""Transformations of a compiled model: one a file, on onnx_ir's own pass framework.

A target lists the names of its passes in order; here each name meets the pass that it stands for.
"""

from collections import Counter
from collections.abc import Callable, Iterable

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer._constant_folding import FoldConstantsPass

from coda_compile.bundling.build_report import PassReport
from coda_compile.errors import CompileError
from coda_compile.export import TAGS
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.declining import Declining
from coda_compile.passes.dequantize_weights import DequantizeWeights
from coda_compile.passes.fuse_adapters import FuseAdapters
from coda_compile.passes.fuse_attention import FuseAttention
from coda_compile.passes.fuse_embeddings import FuseEmbeddings
from coda_compile.passes.fuse_gelus import FuseGelus
from coda_compile.passes.fuse_norms import FuseNorms
from coda_compile.passes.fuse_projections import FuseProjections
from coda_compile.passes.fuse_puts import FusePuts
from coda_compile.passes.fuse_routers import FuseRouters
from coda_compile.passes.lower_static_products import LowerStaticProducts
from coda_compile.passes.merge_low_rank import MergeLowRank
from coda_compile.passes.pack_rows import PackRows
from coda_compile.passes.prune_heads import PruneHeads
from coda_compile.passes.share_slots import ShareSlots
from coda_compile.passes.shield_sums import ShieldSums
from coda_compile.passes.strip_export_metadata import StripExportMetadata
from coda_compile.passes.trim_to_readout import TrimToReadout
from coda_targets.routing import ROLE_TAG

Pass = ir.passes.InPlacePass

_PASSES: dict[str, Callable[[], Pass]] = {
    "strip_export_metadata": StripExportMetadata,
    "fold_constants": lambda: FoldConstantsPass(
        shape_inference=True, input_size_limit=1 << 13, output_size_limit=1 << 19
    ),
    "eliminate_identities": common.IdentityEliminationPass,
    "merge_low_rank": MergeLowRank,
    "dequantize_weights": DequantizeWeights,
    "lower_static_products": LowerStaticProducts,
    "shield_sums": ShieldSums,
    "share_slots": ShareSlots,
    "fuse_attention": FuseAttention,
    "trim_to_readout": TrimToReadout,
    "prune_heads": PruneHeads,
    "pack_rows": PackRows,
    "fuse_projections": FuseProjections,
    "fuse_adapters": FuseAdapters,
    "fuse_routers": FuseRouters,
    "fuse_gelus": FuseGelus,
    "fuse_embeddings": FuseEmbeddings,
    "fuse_norms": FuseNorms,
    "fuse_puts": FusePuts,
    "eliminate_common_subexpressions": common.CommonSubexpressionEliminationPass,
    "remove_unused": common.RemoveUnusedNodesPass,
    "lift_constants": lambda: common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    "attach_functions": AttachFunctions,
    "attach_openvino_functions": lambda: AttachFunctions(openvino=True),
}


def make_pass(name: str) -> Pass:
    """The pass of a name.

    Raises:
        CompileError: no such pass.
    """
    if name not in _PASSES:
        raise CompileError(f"pass {name!r} is unknown: use one of {', '.join(_PASSES)}")
    return _PASSES[name]()


def operator_counts(model: ir.Model) -> Counter[str]:
    """How often each operator stands in the main graph, ``domain::name`` outside the default domain."""
    return Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph)


def _tags(model: ir.Model) -> dict[str | None, dict[str, str]]:
    """Layer and role of the node behind every value."""
    return {
        value.name: {key: node.metadata_props[key] for key in TAGS if key in node.metadata_props}
        for node in model.graph
        for value in node.outputs
    }


def _hand_on(tags: dict[str | None, dict[str, str]], model: ir.Model) -> None:
    """Tag the nodes that a foreign pass put in another's place, known by the value that they still compute."""
    for node in model.graph:
        if ROLE_TAG not in node.metadata_props:
            node.metadata_props.update(tags.get(node.outputs[0].name) or {ROLE_TAG: "model"})


def run_passes(model: ir.Model, names: Iterable[str]) -> list[PassReport]:
    """Run passes in order, in place, and say what each did; a pass that did nothing says so too."""
    reports = []
    for name in names:
        before = operator_counts(model)
        tags = _tags(model)
        step = make_pass(name)
        modified = bool(step(model).modified)
        _hand_on(tags, model)
        after = operator_counts(model)
        changed = {op: after[op] - before[op] for op in sorted(before | after) if after[op] != before[op]}
        declined = dict(step.declined) if isinstance(step, Declining) else {}
        reports.append(PassReport(name, modified, sum(after.values()), changed, declined))
    return reports
