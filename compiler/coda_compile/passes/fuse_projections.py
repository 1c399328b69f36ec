"""Fuse the query, key and value projections of self-attention into one linear layer."""

import onnx_ir as ir

from coda_compile.passes.fusion import NodeFusion
from coda_compile.passes.outcome import Declined, Fused, Outcome
from coda_compile.passes.projections import (
    Projection,
    has_more,
    heads_and_scale,
    key_bias,
    pack,
    product,
    projection,
    why_apart,
)
from coda_compile.passes.values import attention_bias, constant, replace
from coda_ops import DOMAIN, RUNTIME_DOMAIN


class FuseProjections(NodeFusion):
    """``MultiHeadAttention`` over three projections of one input → one linear layer with packed weights.

    One large product keeps the cores busier than three, and in int8 quantises its input once. ``SelfAttention`` reads
    its result where it lies, if all that is added to the scores is one number for each key. Otherwise, as with relative
    positions, it is ``com.microsoft.Attention`` with a product of its own; in int8 the result is split. Queries and
    keys of different tokens (k-to-all) stay apart.
    """

    anchor = (RUNTIME_DOMAIN, "MultiHeadAttention")

    def attempt(self, graph: ir.Graph, node: ir.Node) -> Outcome:
        """Fuse the projections of one attention."""
        if has_more(node):
            return Declined("it has a bias, a padding mask or a cache of its own", node)
        parts = []
        for projected in node.inputs[:3]:
            part = projection(projected)
            if part is None:
                return Declined("a projection is no linear layer that it alone reads", projected)
            parts.append(part)
        query, key, value = parts
        if not query.x is key.x is value.x:
            return Declined("queries and keys come from different tokens", key.x)
        reason = why_apart(parts)
        if reason is not None:
            return Declined(reason, node)
        packed = pack(graph, parts)
        new = _of_keys(node, query, packed) or (_split if query.int8 else _attention)(node, query, packed)
        replace(graph, node, [node, *(old for part in parts for old in part.nodes)], new)
        return Fused()


def _of_keys(node: ir.Node, query: Projection, packed: list[ir.Value]) -> list[ir.Node]:
    """The linear layer and SelfAttention; nothing where more than one number for each key is added."""
    biases, bias = constant(packed[-1]), key_bias(node)
    if biases is None or bias is None:
        return []
    linear = product(query, packed)
    attributes = heads_and_scale(node, biases.size // 3)
    return [*linear, ir.node("SelfAttention", [linear[-1].outputs[0], bias], attributes, domain=DOMAIN)]


def _attention(node: ir.Node, query: Projection, packed: list[ir.Value]) -> list[ir.Node]:
    attributes = {name: node.attributes[name] for name in ("num_heads", "scale") if name in node.attributes}
    inputs = [query.x, *packed, None, None, attention_bias(node)]
    return [ir.node("Attention", inputs, attributes, domain=RUNTIME_DOMAIN)]


def _split(node: ir.Node, query: Projection, packed: list[ir.Value]) -> list[ir.Node]:
    linear = product(query, packed)
    split = ir.node("Split", linear[-1].outputs, {"axis": -1, "num_outputs": 3}, num_outputs=3)
    inputs = [*split.outputs, *node.inputs[3:]]
    return [*linear, split, ir.node("MultiHeadAttention", inputs, node.attributes, domain=RUNTIME_DOMAIN)]
