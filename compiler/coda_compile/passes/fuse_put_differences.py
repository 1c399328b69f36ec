"""Fuse the difference that a layer made to its tokens with the scatter behind it."""

import onnx_ir as ir

from coda_compile.passes.fusion import NodeFusion
from coda_compile.passes.outcome import Declined, Fused, Outcome
from coda_compile.passes.values import producer, replace
from coda_ops import DOMAIN


class FusePutDifferences(NodeFusion):
    """Sub → ``ai.coda::PutTokens`` becomes ``PutDifference``: one walk less over the routed tokens.

    Post-norm layers update tokens that way. Layers with stand-ins take off what lies in the routed tokens' places:
    TakeTokens → Sub → PutTokens becomes ``BlendTokens``, without the gather. The function bodies are what was there
    before.

    Args:
        blend: whether the runtime has a kernel of BlendTokens, or of none of the two.
    """

    anchor = (DOMAIN, "PutTokens")

    def __init__(self, *, blend: bool = True) -> None:
        super().__init__()
        self.blend = blend

    def attempt(self, graph: ir.Graph, node: ir.Node) -> Outcome:
        """Fuse one scatter with its difference."""
        *where, update = node.inputs
        difference = producer(update, "Sub")
        if difference is None:
            return Declined("its update is no difference that it alone reads", update)
        after, before = difference.inputs
        if after is None or before is None or after.shape is None or after.shape != before.shape:
            return Declined("the two sides of the difference have different shapes", update)
        taken = producer(before, "TakeTokens", domain=DOMAIN)
        if self.blend and taken is not None and list(taken.inputs) == where[:2]:
            fused = ir.node("BlendTokens", [*where, after], domain=DOMAIN)
            replace(graph, node, [node, difference, taken], [fused])
        else:
            fused = ir.node("PutDifference", [*where, after, before], domain=DOMAIN)
            replace(graph, node, [node, difference], [fused])
        return Fused()
