"""Passes of onnx_ir, with the names and options that they have here."""

import onnx_ir as ir
from onnx_ir.passes import common


class EliminateCommonSubexpressions(common.CommonSubexpressionEliminationPass):
    """Computes once what several nodes compute alike."""


class RemoveUnused(common.RemoveUnusedNodesPass):
    """Takes out nodes and initializers that no output depends on."""


class LiftConstants(common.LiftConstantsToInitializersPass):
    """Constant nodes → initializers, whatever their size."""

    def __init__(self) -> None:
        super().__init__(lift_all_constants=True, size_limit=0)


class InlineFunctions(ir.passes.InPlacePass):
    """Function calls → the nodes of their bodies, for a runtime that knows no functions."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline every call, and forget the functions."""
        result = common.InlinePass()(model)
        return ir.passes.PassResult(result.model, bool(result.modified))
