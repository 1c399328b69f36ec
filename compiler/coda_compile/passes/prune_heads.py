"""Attention heads that nobody hears are not computed."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from coda_compile.passes.declining import Declining
from coda_compile.passes.token_wise import asks_for_size
from coda_compile.passes.values import add_constant, both_ways
from coda_ops import RUNTIME_DOMAIN

_BIAS = 5  # the input of MultiHeadAttention that is added to the scores


@dataclass(frozen=True)
class _Product:
    """x · weight + bias of one reader, or x · weight alone."""

    matmul: ir.Node
    add: ir.Node | None


class PruneHeads(Declining):
    """Heads whose rows of the output projection are all 0 → gone from query, key, value and output projection.

    Pruning methods leave such heads behind, since they set weights to 0 and keep shapes. Exact: what they compute is
    multiplied by 0.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Prune every fused attention."""
        self.declined.clear()
        modified = False
        for node in list(model.graph):
            if (node.domain, node.op_type) == (RUNTIME_DOMAIN, "MultiHeadAttention"):
                reason = _prune(model.graph, node)
                modified |= reason == ""
                self.declined.update([reason] if reason else ())
        return ir.passes.PassResult(model, modified)


def _prune(graph: ir.Graph, attention: ir.Node) -> str | None:
    """Prune one; returns why not, an empty text when it was done, or ``None`` where every head is heard."""
    heads = attention.attributes.get_int("num_heads", 0)
    readers = [user for user, _ in attention.outputs[0].uses() if not asks_for_size(user)]
    out = readers[0] if len(readers) == 1 else None
    mixed = None if out is None or (out.domain, out.op_type) != ("", "MatMul") else _array(out.inputs[1])
    if out is None or mixed is None or mixed.ndim != 2 or len(mixed) % heads:
        return None
    heard = np.abs(mixed).reshape(heads, -1).max(1) > 0
    if heard.all():
        return None
    if not heard.any():
        heard[0] = True  # the operator has at least one
        if heads == 1:
            return None
    if not _same_for_all(attention.inputs[_BIAS] if len(attention.inputs) > _BIAS else None):
        return "its heads are biased each in another way"
    products = [_product(value) for value in attention.inputs[:3]]
    if any(product is None for product in products):
        return "a projection is no product with weights, or others read it too"
    for product in products:
        assert product is not None
        _keep(graph, product.matmul, 1, heard, axis=1)
        _narrow(product.matmul.outputs[0], heard)
        if product.add is not None:
            bias_at = 0 if product.add.inputs[1] is product.matmul.outputs[0] else 1
            _keep(graph, product.add, bias_at, heard, axis=0)
            _narrow(product.add.outputs[0], heard)
    _keep(graph, out, 1, heard, axis=0)
    _narrow(attention.outputs[0], heard)
    attention.attributes["num_heads"] = ir.AttrInt64("num_heads", int(heard.sum()))
    return ""


def _same_for_all(bias: ir.Value | None) -> bool:
    """Whether a bias of [batch, heads, queries, keys] is one for all heads, before it is expanded to the queries."""
    node = None if bias is None else bias.producer()
    if node is not None and node.op_type == "Expand":
        bias = node.inputs[0]
    return bias is None or (bias.shape is not None and bias.shape[1] == 1)


def _array(value: ir.Value | None) -> NDArray[np.float32] | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _product(value: ir.Value | None) -> _Product | None:
    """The product behind a value whose numbers nobody else reads."""
    if value is None or value.is_graph_output() or sum(not asks_for_size(user) for user, _ in value.uses()) != 1:
        return None
    node = value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type == "MatMul":
        weight = _array(node.inputs[1])
        return _Product(node, None) if weight is not None and weight.ndim == 2 else None
    if node.op_type != "Add":
        return None
    for x, other in both_ways(node):
        vector, inner = _array(other), _product(x)
        if vector is not None and vector.ndim == 1 and inner is not None and inner.add is None:
            return _Product(inner.matmul, node)
    return None


def _keep(graph: ir.Graph, node: ir.Node, index: int, heard: NDArray[np.bool_], *, axis: int) -> None:
    """Have a node read what is left of a constant without the heads that nobody hears along an axis."""
    value = node.inputs[index]
    array = _array(value)
    assert value is not None
    assert array is not None
    size = array.shape[axis] // len(heard)
    kept = np.compress(np.repeat(heard, size), array, axis)
    pruned = add_constant(graph, f"{value.name}.heard", np.ascontiguousarray(kept))
    node.replace_input_with(index, pruned)


def _narrow(value: ir.Value, heard: NDArray[np.bool_]) -> None:
    """The width that is left of a value."""
    if value.shape is not None and isinstance(value.shape[-1], int):
        value.shape = ir.Shape([*value.shape[:-1], value.shape[-1] // len(heard) * int(heard.sum())])
