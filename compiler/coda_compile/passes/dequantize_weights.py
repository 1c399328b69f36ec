"""Products with int8 weights as runtimes know them that round activations themselves."""

import numpy as np
import onnx_ir as ir

from coda_compile.passes.values import add_constant
from coda_ops import DOMAIN

_MIDDLE = 128  # the level that stands for 0


class DequantizeWeights(ir.passes.InPlacePass):
    """``ai.coda::Int8Linear`` → ``DequantizeLinear`` of its weights, ``MatMul``, ``Add``.

    The file then says that weights are rounded and nothing of activations: OpenVINO multiplies bytes where it meets
    this form, and rounds activations for it as its processor allows (``coda_compile.backends.openvino_rounding``).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace all of them."""
        graph, modified = model.graph, False
        for node in list(graph):
            if (node.domain, node.op_type) == (DOMAIN, "Int8Linear"):
                x, *constants = node.inputs
                replace_product(graph, node, x, constants, _MIDDLE)
                modified = True
        return ir.passes.PassResult(model, modified)


def replace_product(
    graph: ir.Graph, node: ir.Node, x: ir.Value | None, constants: list[ir.Value | None], middle: int = 0
) -> None:
    """Put ``x · DequantizeLinear(weight) + bias`` in the place of a product with int8 weights.

    Between a product of packed rows and its bias stands a ``Flatten`` that changes nothing: onnxruntime would make a
    ``Gemm`` of the two, in floats, before it looks for bytes to multiply.

    Args:
        constants: weight, scale and bias.
        middle: the level of an unsigned weight that stands for 0; a signed one's is 0 itself.
    """
    weight, scale, bias = constants
    assert weight is not None
    assert weight.shape is not None
    outputs = weight.shape[1]
    assert isinstance(outputs, int)
    levels = [weight, scale]
    if middle:
        name = f"coda.middle.{outputs}"
        levels.append(graph.initializers.get(name) or add_constant(graph, name, np.full(outputs, middle, np.uint8)))
    wide = ir.node("DequantizeLinear", levels, {"axis": 1})
    wide.outputs[0].shape, wide.outputs[0].type = weight.shape, ir.TensorType(ir.DataType.FLOAT)
    nodes = [wide, ir.node("MatMul", [x, wide.outputs[0]])]
    if node.outputs[0].shape is not None and len(node.outputs[0].shape) == 2:
        nodes.append(ir.node("Flatten", nodes[-1].outputs, {"axis": 1}))
    for product in nodes[1:]:
        product.outputs[0].shape, product.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    added = ir.node("Add", [nodes[-1].outputs[0], bias])
    nodes.append(added)
    for new in nodes:
        new.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, added.outputs)
