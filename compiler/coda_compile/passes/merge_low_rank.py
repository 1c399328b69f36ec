"""Merge LoRA branches into the weights that they adapt."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from coda_compile.passes.fusion import NodeFusion
from coda_compile.passes.outcome import Declined, Fused, NotHere, Outcome
from coda_compile.passes.values import add_constant, array_of, constant, either_order

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class _Branch:
    """x · A · B, times numbers on the way: what it reads and the matrix that it amounts to."""

    x: ir.Value
    weight: NDArray[np.float64]  # [inputs, outputs]
    shared: bool  # others read something inside of it too


@dataclass(frozen=True)
class _Linear:
    """x · W, and how its node stores W."""

    node: ir.Node
    x: ir.Value
    transposed: bool  # stored as [outputs, inputs]


class MergeLowRank(NodeFusion):
    """``x · W + s · (x · A · B)`` → ``x · (W + s · A · B)``, with or without a bias beside it, from any exporter.

    An unmerged LoRA (Hu et al. 2021) costs two thin products, a scale and a sum in every layer, and keeps what it is
    added to from being fused. The sum of the weights is taken in float64 and rounded once.
    """

    anchor = ("", "Add")

    def attempt(self, graph: ir.Graph, node: ir.Node) -> Outcome:
        """Merge the branch that one sum adds."""
        for update, base in either_order(node):
            branch = _branch(update)
            if branch is not None and update is not None and base is not None and constant(base) is None:
                return _merge(graph, node, update, branch, base)
        return NotHere()


def _merge(graph: ir.Graph, add: ir.Node, update: ir.Value, branch: _Branch, base: ir.Value) -> Outcome:
    linear = _linear(base)
    if linear is None:
        return Declined("what it is added to is no linear layer that it alone reads", base)
    if branch.shared:
        return Declined("others read a part of the branch too", update)
    if linear.x is not branch.x:
        return Declined("the branch reads another value than the linear layer", branch.x)
    weight = linear.node.inputs[1]
    delta = branch.weight.T if linear.transposed else branch.weight
    array = array_of(weight)
    if weight is None or array.shape != delta.shape:
        return Declined("the branch has another shape than the weight", weight)
    # The old weight may have other readers.
    merged = (array.astype(np.float64) + delta).astype(array.dtype)
    linear.node.replace_input_with(1, add_constant(graph, f"{weight.name}.merged", merged))
    ir.convenience.replace_all_uses_with(add.outputs, [base], replace_graph_outputs=True)
    graph.remove(add, safe=True)
    unused: ir.Value | None = update
    while unused is not None and (node := unused.producer()) is not None and not unused.uses():
        unused = next((v for v in node.inputs if v is not None and constant(v) is None), None)
        graph.remove(node, safe=True)
    return Fused()


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
        tensor = constant(node.inputs[i])
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
    tensor = constant(node.inputs[1], 2)
    if tensor is None or tensor.dtype not in _FLOATS:
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


def _linear(value: ir.Value | None) -> _Linear | None:
    """The linear layer behind a value, below biases and other sums with vectors."""
    while value is not None and (node := value.producer()) is not None and node.domain == "":
        if len(value.uses()) != 1 or value.is_graph_output():
            return None
        if node.op_type == "Add":
            value = next((v for v, other in either_order(node) if _is_vector(other)), None)
            continue
        x, weight = (*node.inputs, None)[:2]
        tensor = constant(weight, 2)
        if node.op_type not in ("MatMul", "Gemm") or not _plain(node) or tensor is None or x is None:
            return None
        if tensor.dtype not in _FLOATS:
            return None
        return _Linear(node, x, _transposed(node))
    return None


def _is_vector(value: ir.Value | None) -> bool:
    tensor = constant(value)
    return tensor is not None and len(tensor.shape) <= 1
