"""A router's scores from the operator that reads the same tokens."""

import numpy as np
import onnx_ir as ir

from coda_compile.passes.declining import Declining
from coda_compile.passes.values import made_by
from coda_ops import DOMAIN


class FuseRouters(Declining):
    """``Int8AddAdapter`` and a router's product over what it reads → ``Int8RouterAdapter``.

    Both read every token, and a router does next to nothing with them: its product takes as long as they take to come
    from memory. The adapter has them in the first cache.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse each Route node's router."""
        return self.fuse_each(model, DOMAIN, "Route", _fuse)


def _fuse(graph: ir.Graph, route: ir.Node) -> str | None:
    """Fuse one; returns why not, or ``None``."""
    if made_by(route.inputs[0], "Int8RouterAdapter", domain=DOMAIN) is not None:
        return "it is there already"
    squeeze = made_by(route.inputs[0], "Squeeze")
    product = None if squeeze is None else made_by(squeeze.inputs[0], "MatMul")
    if squeeze is None or product is None or not _is_last(squeeze.inputs[1]):
        return "scores are no product with one column"
    x, router = product.inputs
    weight = None if router is None else ir.convenience.get_const_tensor(router)
    if x is None or weight is None or len(weight.shape) != 2 or weight.shape[1] != 1:
        return "scores are no product with one column"
    adapter = next((user for user, at in x.uses() if user.op_type == "Int8AddAdapter" and at == 1), None)
    if adapter is None or next(node for node in graph if node is adapter or node is route) is route:
        return "no adapter in eight bits reads the same tokens before they are routed"
    fused = ir.node("Int8RouterAdapter", [*adapter.inputs, router], num_outputs=3, domain=DOMAIN)
    fused.metadata_props.update(adapter.metadata_props)
    old = [squeeze, product, adapter]
    ir.convenience.replace_nodes_and_values(
        graph, adapter, old, [fused], [*adapter.outputs, *squeeze.outputs], fused.outputs
    )
    return None


def _is_last(axes: ir.Value | None) -> bool:
    tensor = None if axes is None else ir.convenience.get_const_tensor(axes)
    return tensor is not None and np.array_equal(tensor.numpy(), [-1])
