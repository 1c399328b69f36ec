"""LoRA's branches, merged into the weights that they adapt."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from coda_compile.passes.declining import Declining
from coda_compile.passes.values import add_constant, both_ways

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class _Branch:
    """x · A · B, times numbers on the way: what it reads and the matrix that it amounts to."""

    x: ir.Value
    weight: NDArray[np.float64]  # [inputs, outputs]
    shared: bool  # others read something inside of it too


@dataclass(frozen=True)
class _Product:
    """x · W, and how its node stores W."""

    node: ir.Node
    x: ir.Value
    transposed: bool  # stored as [outputs, inputs]


class MergeLowRank(Declining):
    """``x · W + s · (x · A · B)`` → ``x · (W + s · A · B)``, with or without a bias beside it, from any exporter.

    An unmerged LoRA (Hu et al. 2021) costs two thin products, a scale and a sum in every layer, and keeps what it is
    added to from being fused. The sum of the weights is taken in float64 and rounded once.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge what matches."""
        self.declined.clear()
        modified = False
        for node in list(model.graph):
            if node.op_type == "Add" and node.domain == "":
                reason = _merge(model.graph, node)
                modified |= reason == ""
                self.declined.update([reason] if reason else ())
        return ir.passes.PassResult(model, modified)


def _merge(graph: ir.Graph, add: ir.Node) -> str | None:
    """Merge one sum; returns why not, an empty text when it was done, or ``None`` where there is no branch."""
    for i, value in enumerate(add.inputs):
        branch = _branch(value)
        if branch is None:
            continue
        other = add.inputs[1 - i]
        product = _product(other)
        if product is None:
            return "what it is added to is no product with a weight, or others read it too"
        if branch.shared:
            return "others read a part of it too"
        if product.x is not branch.x:
            return "it reads other values than the product that it is added to"
        weight = product.node.inputs[1]
        assert weight is not None
        if not _add_to_weight(graph, product, weight, branch.weight):
            return "its shape is not the weight's"
        assert other is not None
        ir.convenience.replace_all_uses_with(add.outputs, [other], replace_graph_outputs=True)
        graph.remove(add, safe=True)
        while value is not None and (node := value.producer()) is not None and not value.uses():
            value = next((v for v in node.inputs if v is not None and _constant(v) is None), None)
            graph.remove(node, safe=True)
        return ""
    return None


def _branch(value: ir.Value | None) -> _Branch | None:
    """Two products with constant matrices in a row; numbers may scale what comes out of either."""
    weight: NDArray[np.float64] | None = None
    products, scale, shared = 0, 1.0, False
    while products < 2:
        node = None if value is None else value.producer()
        if value is None or node is None or node.domain != "":
            return None
        shared |= len(value.uses()) != 1 or value.is_graph_output()
        if (found := _scaled(node)) is not None:
            factor, value = found
            scale *= factor
        elif (matrix := _matrix(node)) is not None:
            weight = matrix if weight is None else matrix @ weight
            products, value = products + 1, node.inputs[0]
        else:
            return None
    return None if value is None or weight is None else _Branch(value, weight * scale, shared)


def _scaled(node: ir.Node) -> tuple[float, ir.Value | None] | None:
    """The number that a node multiplies by and what it multiplies."""
    for i in {"Mul": (0, 1), "Div": (1,)}.get(node.op_type, ()):
        tensor = _constant(node.inputs[i])
        if tensor is not None and tensor.size == 1 and len(tensor.shape) <= 1:
            number = float(tensor.numpy().item())
            if node.op_type == "Div" and number == 0:
                return None
            return (number if node.op_type == "Mul" else 1 / number), node.inputs[1 - i]
    return None


def _matrix(node: ir.Node) -> NDArray[np.float64] | None:
    """The constant [inputs, outputs] that a node multiplies its first input by and nothing more."""
    if node.op_type not in ("MatMul", "Gemm") or not _plain(node):
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return None
    tensor = _constant(node.inputs[1])
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype not in _FLOATS:
        return None
    array: NDArray[np.float64] = tensor.numpy().astype(np.float64)
    return array.T if _transposed(node) else array


def _plain(node: ir.Node) -> bool:
    """Whether a Gemm is a product and a bias, nothing scaled and its first input as it is."""
    attributes = node.attributes
    scales = (attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0))
    return scales == (1.0, 1.0) and attributes.get_int("transA", 0) == 0


def _transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1


def _product(value: ir.Value | None) -> _Product | None:
    """The product behind a value, below biases and other sums with vectors."""
    while value is not None and (node := value.producer()) is not None and node.domain == "":
        if len(value.uses()) != 1 or value.is_graph_output():
            return None
        if node.op_type == "Add":
            value = next((v for v, other in both_ways(node) if _vector(other)), None)
            continue
        x, weight = (*node.inputs, None)[:2]
        tensor = _constant(weight)
        if node.op_type not in ("MatMul", "Gemm") or not _plain(node) or tensor is None or x is None:
            return None
        if len(tensor.shape) != 2 or tensor.dtype not in _FLOATS:
            return None
        return _Product(node, x, _transposed(node))
    return None


def _vector(value: ir.Value | None) -> bool:
    tensor = _constant(value)
    return tensor is not None and len(tensor.shape) <= 1


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else ir.convenience.get_const_tensor(value)


def _add_to_weight(graph: ir.Graph, product: _Product, weight: ir.Value, delta: NDArray[np.float64]) -> bool:
    """Have a product multiply by the sum of its weight and a delta; the old weight may have other readers."""
    tensor = ir.convenience.get_const_tensor(weight)
    assert tensor is not None
    stored = delta.T if product.transposed else delta
    if tuple(tensor.shape) != stored.shape:
        return False
    merged = (tensor.numpy().astype(np.float64) + stored).astype(tensor.numpy().dtype)
    product.node.replace_input_with(1, add_constant(graph, f"{weight.name}.merged", merged))
    return True
