"""Passes of onnx_ir, with the names and options that they have here."""

from onnx_ir.passes import common


class EliminateCommonSubexpressions(common.CommonSubexpressionEliminationPass):
    """Computes once what several nodes compute alike."""


class RemoveUnused(common.RemoveUnusedNodesPass):
    """Takes out nodes and initializers that no output depends on."""


class LiftConstants(common.LiftConstantsToInitializersPass):
    """Constant nodes → initializers, whatever their size."""

    def __init__(self) -> None:
        super().__init__(lift_all_constants=True, size_limit=0)
