"""Fuse GELU with the bias, or the int8 linear layer, before it."""

import onnx_ir as ir

from coda_compile.passes.fusion import NodeFusion
from coda_compile.passes.outcome import Declined, Fused, Outcome
from coda_compile.passes.values import either_order, is_bias, producer, replace
from coda_ops import DOMAIN


class FuseGelus(NodeFusion):
    """Add of a constant → Gelu becomes ``AddGelu``, Int8Linear → Gelu becomes ``Int8LinearGelu``.

    The native kernels fit the error function by one polynomial, and in int8 apply it to what the linear layer has just
    left in the cache. The function bodies are what was there before.
    """

    anchor = ("", "Gelu")

    def attempt(self, graph: ir.Graph, node: ir.Node) -> Outcome:
        """Fuse one GELU."""
        x = node.inputs[0]
        if node.attributes.get_string("approximate", "none") != "none":
            return Declined("it is the tanh approximation", node)
        linear = producer(x, "Int8Linear", domain=DOMAIN)
        if linear is not None:
            replace(graph, node, [node, linear], [ir.node("Int8LinearGelu", linear.inputs, domain=DOMAIN)])
            return Fused()
        add = producer(x, "Add")
        biased = None if add is None else next((pair for pair in either_order(add) if is_bias(pair[1], pair[0])), None)
        if add is None or biased is None:
            return Declined("its input is no sum with a constant bias that it alone reads", x)
        replace(graph, node, [node, add], [ir.node("AddGelu", biased, domain=DOMAIN)])
        return Fused()
