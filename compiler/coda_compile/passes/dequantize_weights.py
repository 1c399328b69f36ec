"""Int8 linear layers as ``DequantizeLinear`` and ``MatMul``, for runtimes that quantise activations themselves."""

import numpy as np
import onnx_ir as ir

from coda_compile.passes.values import add_constant, replace
from coda_ops import DOMAIN

_ZERO_POINT = 128  # of every weight of an Int8Linear


class DequantizeWeights(ir.passes.InPlacePass):
    """``ai.coda::Int8Linear`` → ``DequantizeLinear`` of its weights, ``MatMul``, ``Add``.

    The file then says that weights are quantised and nothing of activations: OpenVINO multiplies bytes where it meets
    this form, and quantises activations for it as its processor allows (``coda_compile.backends.openvino_rounding``).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace all of them."""
        graph, modified = model.graph, False
        for node in list(graph):
            if (node.domain, node.op_type) == (DOMAIN, "Int8Linear"):
                x, *constants = node.inputs
                replace_linear(graph, node, x, constants, _ZERO_POINT)
                modified = True
        return ir.passes.PassResult(model, modified)


def replace_linear(
    graph: ir.Graph, node: ir.Node, x: ir.Value | None, constants: list[ir.Value | None], zero_point: int = 0
) -> None:
    """Compute an int8 linear layer as ``x · DequantizeLinear(weight) + bias``.

    Between a product of packed rows and its bias stands a ``Flatten`` that changes nothing: onnxruntime would make a
    ``Gemm`` of the two, in floats, before it looks for bytes to multiply.

    Args:
        constants: weight [inputs, outputs], scale and bias [outputs].
        zero_point: of unsigned weights; that of signed ones is 0.
    """
    weight, scale, bias = constants
    assert weight is not None
    assert weight.shape is not None
    outputs = weight.shape[1]
    assert isinstance(outputs, int)
    quantized = [weight, scale]
    if zero_point:
        name = f"coda.zero_point.{outputs}"
        points = graph.initializers.get(name) or add_constant(graph, name, np.full(outputs, zero_point, np.uint8))
        quantized.append(points)
    floats = ir.node("DequantizeLinear", quantized, {"axis": 1})
    floats.outputs[0].shape, floats.outputs[0].type = weight.shape, ir.TensorType(ir.DataType.FLOAT)
    nodes = [floats, ir.node("MatMul", [x, floats.outputs[0]])]
    if node.outputs[0].shape is not None and len(node.outputs[0].shape) == 2:
        nodes.append(ir.node("Flatten", nodes[-1].outputs, {"axis": 1}))
    for product in nodes[1:]:
        product.outputs[0].shape, product.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    replace(graph, node, [node], [*nodes, ir.node("Add", [nodes[-1].outputs[0], bias])])
