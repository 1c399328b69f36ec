"""Products in eight bits whose activations have one step, as every runtime knows them."""

from typing import Any

import onnx_ir as ir

from coda_compile.passes.dequantize_weights import replace_product
from coda_compile.passes.values import array_of
from coda_ops import DOMAIN


class LowerStaticProducts(ir.passes.InPlacePass):
    """``ai.coda::Int8StaticLinear`` → ``QuantizeLinear``, ``DequantizeLinear``, ``MatMul``, ``Add``.

    onnxruntime and OpenVINO multiply bytes where they meet this form. What several products read is rounded once, if
    they ask for the same levels.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace all of them."""
        graph, rounded = model.graph, dict[Any, ir.Value]()
        for node in list(graph):
            if (node.domain, node.op_type) != (DOMAIN, "Int8StaticLinear"):
                continue
            x, weight, scale, bias, step, zero = node.inputs
            levels = x, array_of(step).item(), array_of(zero).item()
            if levels not in rounded:
                rounded[levels] = _round(graph, node, x, step, zero)
            replace_product(graph, node, rounded[levels], [weight, scale, bias])
        return ir.passes.PassResult(model, bool(rounded))


def _round(
    graph: ir.Graph, node: ir.Node, x: ir.Value | None, step: ir.Value | None, zero: ir.Value | None
) -> ir.Value:
    """x as whole levels, in float32 again."""
    assert x is not None
    to_levels = ir.node("QuantizeLinear", [x, step, zero])
    back = ir.node("DequantizeLinear", [to_levels.outputs[0], step, zero])
    for new, kind in ((to_levels, ir.DataType.UINT8), (back, ir.DataType.FLOAT)):
        new.outputs[0].shape, new.outputs[0].type = x.shape, ir.TensorType(kind)
        new.metadata_props.update(node.metadata_props)
    graph.insert_before(node, [to_levels, back])
    return back.outputs[0]
