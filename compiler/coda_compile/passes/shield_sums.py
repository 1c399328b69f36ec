"""The scale of a rounded product, kept on its side of a sum for OpenVINO."""

import numpy as np
import onnx_ir as ir

from coda_compile.passes.values import add_constant, both_ways, made_by

_LOWEST = "coda.lowest"
_HIGHEST = "coda.highest"


class ShieldSums(ir.passes.InPlacePass):
    """x + (product in eight bits whose activations have one step) → x + Clip(product), to all that float32 holds.

    OpenVINO moves such a product's scale behind the sum, and divides x by it before: two more walks over all tokens
    where an adapter is added. The Clip is in its way there, and is taken out later because it does nothing.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Shield all of them."""
        graph, modified = model.graph, False
        for node in list(graph):
            if (node.domain, node.op_type) != ("", "Add"):
                continue
            for side, (product, other) in enumerate(both_ways(node)):
                if product is not None and _is_rounded(product) and other is not None and not other.is_initializer():
                    node.replace_input_with(side, _clipped(graph, node, product))
                    modified = True
        return ir.passes.PassResult(model, modified)


def _is_rounded(value: ir.Value) -> bool:
    """Whether it is ``DequantizeLinear(QuantizeLinear) · weight + bias``."""
    biased = made_by(value, "Add")
    product = made_by(None if biased is None else biased.inputs[0], "MatMul")
    back = made_by(None if product is None else product.inputs[0], "DequantizeLinear", readers=None)
    return back is not None and made_by(back.inputs[0], "QuantizeLinear") is not None


def _clipped(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    limits = np.finfo(np.float32)
    ends = [
        graph.initializers.get(name) or add_constant(graph, name, np.array(end, np.float32))
        for name, end in ((_LOWEST, limits.min), (_HIGHEST, limits.max))
    ]
    clip = ir.node("Clip", [value, *ends])
    clip.outputs[0].shape, clip.outputs[0].type = value.shape, value.type
    clip.metadata_props.update(node.metadata_props)
    graph.insert_before(node, clip)
    return clip.outputs[0]
