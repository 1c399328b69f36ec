"""Query, key and value of self-attention from one matrix product."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from coda_compile.fusions import RUNTIME_DOMAIN
from coda_compile.passes.declining import Declining
from coda_compile.passes.token_wise import asks_for_size
from coda_compile.passes.values import add_constant, both_ways, made_by

_BIAS = 5  # the input of both operators that is added to the scores


@dataclass(frozen=True)
class _Projection:
    """x · weight + bias, the two nodes that compute it, and others that ask how many texts or tokens it has."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value
    nodes: tuple[ir.Node, ir.Node]
    sizes: tuple[ir.Node, ...]


class FuseProjections(Declining):
    """``MultiHeadAttention`` over three projections of one input → ``com.microsoft.Attention`` with packed weights.

    One large product keeps the cores busier than three, and the operator splits heads without copying. Queries and
    keys of different tokens (k-to-all) stay apart.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse what matches."""
        self.declined.clear()
        modified = False
        for node in list(model.graph):
            if node.domain == RUNTIME_DOMAIN and node.op_type == "MultiHeadAttention":
                reason = _fuse(model.graph, node)
                modified |= reason is None
                self.declined.update([reason] if reason else ())
        return ir.passes.PassResult(model, modified)


def _fuse(graph: ir.Graph, node: ir.Node) -> str | None:
    """Fuse one; returns why not, or ``None``."""
    parts = [_projection(value) for value in node.inputs[:3]]
    others = [value for i, value in enumerate(node.inputs[3:], 3) if i != _BIAS and value is not None]
    if others or len(node.outputs) != 1:
        return "it has a bias, a padding mask or a cache of its own"
    if any(part is None for part in parts):
        return "a projection is no product with weights and a bias, or others read it too"
    query, key, value = (part for part in parts if part is not None)
    if not query.x is key.x is value.x:
        return "queries and keys come from different tokens"
    weight = _packed(graph, [part.weight for part in (query, key, value)], f"{query.weight.name}.qkv")
    bias = _packed(graph, [part.bias for part in (query, key, value)], f"{query.bias.name}.qkv")
    added = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
    fused = ir.node(
        "Attention",
        [query.x, weight, bias, None, None, added],
        {name: node.attributes[name] for name in ("num_heads", "scale") if name in node.attributes},
        domain=RUNTIME_DOMAIN,
    )
    fused.metadata_props.update(node.metadata_props)
    for size in (size for part in (query, key, value) for size in part.sizes):
        size.replace_input_with(0, query.x)
    old = [node, *(old for part in (query, key, value) for old in reversed(part.nodes))]
    ir.convenience.replace_nodes_and_values(graph, node, old, [fused], node.outputs, fused.outputs)
    return None


def _projection(value: ir.Value | None) -> _Projection | None:
    """The product and bias behind a value whose numbers nobody else reads; ``None`` for anything else."""
    if value is None:
        return None
    sizes = tuple(user for user, _ in value.uses() if asks_for_size(user))
    add = made_by(value, "Add", readers=1 + len(sizes))
    if add is None:
        return None
    for product, bias in both_ways(add):
        matmul = made_by(product, "MatMul")
        if matmul is None or not _constant(bias, 1) or not _constant(matmul.inputs[1], 2):
            continue
        x, weight = matmul.inputs
        if x is not None and weight is not None and bias is not None:
            return _Projection(x, weight, bias, (matmul, add), sizes)
    return None


def _constant(value: ir.Value | None, rank: int) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and len(tensor.shape) == rank


def _packed(graph: ir.Graph, values: list[ir.Value], name: str) -> ir.Value:
    """A new initializer: constants side by side along their last axis."""
    tensors = [ir.convenience.get_const_tensor(value) for value in values]
    array = np.concatenate([tensor.numpy() for tensor in tensors if tensor is not None], axis=-1)
    return add_constant(graph, name, array)
