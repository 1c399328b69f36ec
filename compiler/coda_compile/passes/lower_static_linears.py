"""Int8 linear layers with static activation scales as ``QuantizeLinear`` and ``DequantizeLinear``."""

import onnx_ir as ir

from coda_compile.passes.dequantize_weights import replace_linear
from coda_compile.passes.values import array_of
from coda_ops import DOMAIN


class LowerStaticLinears(ir.passes.InPlacePass):
    """``ai.coda::Int8StaticLinear`` → ``QuantizeLinear``, ``DequantizeLinear``, ``MatMul``, ``Add``.

    onnxruntime and OpenVINO multiply bytes where they meet this form. What several linear layers read is quantised
    once, if they share scale and zero point.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace all of them."""
        graph = model.graph
        quantized = dict[tuple[ir.Value | None, float, int], ir.Value]()
        for node in list(graph):
            if (node.domain, node.op_type) != (DOMAIN, "Int8StaticLinear"):
                continue
            x, weight, weight_scale, bias, scale, zero_point = node.inputs
            key = x, array_of(scale).item(), array_of(zero_point).item()
            if key not in quantized:
                quantized[key] = _quantize(graph, node, x, scale, zero_point)
            replace_linear(graph, node, quantized[key], [weight, weight_scale, bias])
        return ir.passes.PassResult(model, bool(quantized))


def _quantize(
    graph: ir.Graph, node: ir.Node, x: ir.Value | None, scale: ir.Value | None, zero_point: ir.Value | None
) -> ir.Value:
    """x quantised to uint8 and in float32 again, before a node that reads it."""
    assert x is not None
    quantize = ir.node("QuantizeLinear", [x, scale, zero_point])
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero_point])
    for new, dtype in ((quantize, ir.DataType.UINT8), (dequantize, ir.DataType.FLOAT)):
        new.outputs[0].shape, new.outputs[0].type = x.shape, ir.TensorType(dtype)
        new.metadata_props.update(node.metadata_props)
    graph.insert_before(node, [quantize, dequantize])
    return dequantize.outputs[0]
