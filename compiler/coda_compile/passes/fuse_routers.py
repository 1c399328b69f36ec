"""Fuse a router into the int8 adapter or stand-in that reads the same tokens."""

import numpy as np
import onnx_ir as ir

from coda_compile.passes.fusion import NodeFusion
from coda_compile.passes.outcome import Declined, Fused, NotHere, Outcome
from coda_compile.passes.values import constant, producer
from coda_ops import DOMAIN

_FUSED = {"Int8AddAdapter": "Int8RouterAdapter", "Int8AddLowRank": "Int8RouterLowRank"}
_NO_LINEAR = "its scores are no linear layer with one output"


class FuseRouters(NodeFusion):
    """``Int8AddAdapter`` and a router's linear layer over the same tokens → ``Int8RouterAdapter``, and a stand-in's
    ``Int8AddLowRank`` → ``Int8RouterLowRank``.

    Both read every token, and a router does next to nothing with them: it takes as long as they take to come from
    memory. The adapter has them in the first cache.
    """

    anchor = (DOMAIN, "Route")

    def attempt(self, graph: ir.Graph, node: ir.Node) -> Outcome:
        """Fuse the router of one Route node."""
        scores = node.inputs[0]
        if any(producer(scores, operator, domain=DOMAIN) is not None for operator in _FUSED.values()):
            return NotHere()
        squeeze = producer(scores, "Squeeze")
        linear = None if squeeze is None else producer(squeeze.inputs[0], "MatMul")
        if squeeze is None or linear is None or not _is_last(squeeze.inputs[1]):
            return Declined(_NO_LINEAR, scores)
        x, router = linear.inputs
        weight = constant(router, 2)
        if x is None or weight is None or weight.shape[1] != 1:
            return Declined(_NO_LINEAR, scores)
        adapter = next((user for user, at in x.uses() if user.op_type in _FUSED and at == 1), None)
        if adapter is None or next(each for each in graph if each is adapter or each is node) is node:
            return Declined("no int8 adapter reads the same tokens before they are routed", x)
        fused = ir.node(_FUSED[adapter.op_type], [*adapter.inputs, router], num_outputs=3, domain=DOMAIN)
        fused.metadata_props.update(adapter.metadata_props)
        outputs = [*adapter.outputs, *squeeze.outputs]
        ir.convenience.replace_nodes_and_values(
            graph, adapter, [squeeze, linear, adapter], [fused], outputs, fused.outputs
        )
        return Fused()


def _is_last(axes: ir.Value | None) -> bool:
    tensor = constant(axes)
    return tensor is not None and np.array_equal(tensor.numpy(), [-1])
