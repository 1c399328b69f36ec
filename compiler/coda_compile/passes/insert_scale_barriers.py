"""Keep OpenVINO from moving the scale of an int8 linear layer behind the residual sum that follows it."""

import numpy as np
import onnx_ir as ir

from coda_compile.passes.values import add_constant, either_order, producer

_LOWEST = "coda.lowest"
_HIGHEST = "coda.highest"


class InsertScaleBarriers(ir.passes.InPlacePass):
    """x + (linear layer of quantised activations) → x + Clip(linear layer), to all that float32 holds.

    OpenVINO moves such a layer's scale behind the sum, and divides x by it before: two more walks over all tokens where
    an adapter is added. The Clip is in its way there, and is taken out later because it does nothing.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert all of them."""
        graph, modified = model.graph, False
        for node in list(graph):
            if (node.domain, node.op_type) != ("", "Add"):
                continue
            for side, (linear, other) in enumerate(either_order(node)):
                if linear is not None and _is_quantized(linear) and other is not None and not other.is_initializer():
                    node.replace_input_with(side, _clipped(graph, node, linear))
                    modified = True
        return ir.passes.PassResult(model, modified)


def _is_quantized(value: ir.Value) -> bool:
    """Whether it is ``DequantizeLinear(QuantizeLinear) · weight + bias``."""
    biased = producer(value, "Add")
    product = producer(None if biased is None else biased.inputs[0], "MatMul")
    dequantize = producer(None if product is None else product.inputs[0], "DequantizeLinear", uses=None)
    return dequantize is not None and producer(dequantize.inputs[0], "QuantizeLinear") is not None


def _clipped(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """A value within all that float32 holds, inserted before a node and tagged like it."""
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
