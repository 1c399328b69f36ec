"""GELU in one operator with the bias, or the product in eight bits, before it."""

import onnx_ir as ir

from coda_compile.passes.declining import Declining
from coda_compile.passes.values import both_ways, made_by
from coda_ops import DOMAIN


class FuseGelus(Declining):
    """Add of a constant → Gelu becomes ``AddGelu``, Int8Linear → Gelu becomes ``Int8LinearGelu``.

    The native kernels fit the error function by one polynomial, and in eight bits apply it to what a product has just
    left in the cache. The function bodies are what was there before.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse what matches."""
        return self.fuse_each(model, "", "Gelu", _fuse)


def _fuse(graph: ir.Graph, gelu: ir.Node) -> str | None:
    """Fuse one; returns why not, or ``None``."""
    if gelu.attributes.get_string("approximate", "none") != "none":
        return "it is the one by tanh"
    x = gelu.inputs[0]
    product = made_by(x, "Int8Linear", domain=DOMAIN)
    if product is not None:
        fused, old = ir.node("Int8LinearGelu", product.inputs, domain=DOMAIN), product
    else:
        add = made_by(x, "Add")
        inputs = None if add is None else next((pair for pair in both_ways(add) if _is_bias(*pair)), None)
        if add is None or inputs is None:
            return "what it reads is no sum with a constant bias, or others read the sum too"
        fused, old = ir.node("AddGelu", inputs, domain=DOMAIN), add
    fused.metadata_props.update(gelu.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, gelu, [gelu, old], [fused], gelu.outputs, fused.outputs)
    return None


def _is_bias(x: ir.Value | None, bias: ir.Value | None) -> bool:
    tensor = None if bias is None else ir.convenience.get_const_tensor(bias)
    return x is not None and x.shape is not None and tensor is not None and tuple(tensor.shape) == (x.shape[-1],)
