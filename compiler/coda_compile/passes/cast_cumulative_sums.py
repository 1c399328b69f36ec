"""Add up integers along an axis in float32, for runtimes that know no other running sum."""

import onnx_ir as ir

from coda_compile.passes.values import replace

_INTEGERS = {ir.DataType.INT32, ir.DataType.INT64}


class CastCumulativeSums(ir.passes.InPlacePass):
    """``CumSum`` of integers → of float32 between casts.

    Exact where sums stay below 2^24: they count the tokens of a sequence, from which RoBERTa and MPNet take positions.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cast wherever integers are added up."""
        modified = False
        for node in list(model.graph):
            given = node.inputs[0] if (node.domain, node.op_type) == ("", "CumSum") else None
            if given is None or given.dtype not in _INTEGERS:
                continue
            to_float = ir.node("Cast", [given], {"to": int(ir.DataType.FLOAT)})
            total = ir.node("CumSum", [to_float.outputs[0], node.inputs[1]], dict(node.attributes))
            back = ir.node("Cast", [total.outputs[0]], {"to": int(given.dtype)})
            for value, dtype in ((to_float.outputs[0], ir.DataType.FLOAT), (total.outputs[0], ir.DataType.FLOAT)):
                value.type, value.shape = ir.TensorType(dtype), given.shape
            replace(model.graph, node, [node], [to_float, total, back])
            modified = True
        return ir.passes.PassResult(model, modified)
