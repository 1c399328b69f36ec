"""Fuse the query, key and value projections of self-attention into one linear layer."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from coda_compile.passes.fusion import NodeFusion
from coda_compile.passes.linear import linear_layer
from coda_compile.passes.outcome import Declined, Fused, Outcome
from coda_compile.passes.token_wise import asks_for_size
from coda_compile.passes.values import (
    ATTENTION_BIAS,
    add_constant,
    array_of,
    attention_bias,
    constant,
    producer,
    replace,
)
from coda_ops import DOMAIN, RUNTIME_DOMAIN
from coda_targets.routing import JOINED


@dataclass(frozen=True)
class _Projection:
    """A linear layer over x.

    Attributes:
        nodes: that compute it, the last first.
        sizes: nodes that ask for the batch or the tokens of its result.
        constants: weight and bias; weight, scale and bias of an int8 one. Outputs lie along their last axes.
        quantization: scale and zero point of the activations, where they are static.
    """

    x: ir.Value
    constants: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]
    sizes: tuple[ir.Node, ...]
    quantization: tuple[ir.Value, ...] = ()

    @property
    def int8(self) -> bool:
        """Whether its weights are quantised."""
        return len(self.constants) == 3

    @property
    def static(self) -> list[float]:
        """Scale and zero point of its activations; nothing where each token has its own."""
        return [array_of(value).item() for value in self.quantization]


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
        others = [value for i, value in enumerate(node.inputs[3:], 3) if i != ATTENTION_BIAS and value is not None]
        if others or len(node.outputs) != 1:
            return Declined("it has a bias, a padding mask or a cache of its own", node)
        parts = []
        for projected in node.inputs[:3]:
            part = _projection(projected)
            if part is None:
                return Declined("a projection is no linear layer that it alone reads", projected)
            parts.append(part)
        query, key, value = parts
        if not query.x is key.x is value.x:
            return Declined("queries and keys come from different tokens", key.x)
        if not query.int8 == key.int8 == value.int8:
            return Declined("some of the projections are quantised and others are not", node)
        if not query.static == key.static == value.static:
            return Declined("the projections quantise their input differently", node)
        constants = zip(query.constants, key.constants, value.constants, strict=True)
        packed = [_packed(graph, each) for each in constants]
        for size in (size for part in parts for size in part.sizes):
            size.replace_input_with(0, query.x)
        new = _of_keys(node, query, packed) or (_split if query.int8 else _attention)(node, query, packed)
        replace(graph, node, [node, *(old for part in parts for old in part.nodes)], new)
        return Fused()


def _of_keys(node: ir.Node, query: _Projection, packed: list[ir.Value]) -> list[ir.Node]:
    """The linear layer and SelfAttention; nothing where more than one number for each key is added."""
    expand = producer(attention_bias(node), "Expand", uses=None)
    bias = None if expand is None else expand.inputs[0]
    heads = node.attributes.get_int("num_heads", 1)
    biases = constant(packed[-1])
    if biases is None or bias is None or bias.shape is None or len(bias.shape) != 4 or list(bias.shape[1:3]) != [1, 1]:
        return []
    product = _product(query, packed)
    scale = node.attributes.get_float("scale", float(biases.size / 3 / heads) ** -0.5)
    attributes = {"num_heads": heads, "scale": scale}
    return [*product, ir.node("SelfAttention", [product[-1].outputs[0], bias], attributes, domain=DOMAIN)]


def _product(query: _Projection, packed: list[ir.Value]) -> list[ir.Node]:
    """All three projections in one linear layer, [batch, tokens, 3 * width]."""
    if query.int8:
        operator = "Int8StaticLinear" if query.quantization else "Int8Linear"
        nodes = [ir.node(operator, [query.x, *packed, *query.quantization], domain=DOMAIN)]
    else:
        weight, bias = packed
        product = ir.node("MatMul", [query.x, weight])
        nodes = [product, ir.node("Add", [product.outputs[0], bias])]
    for (value,) in (node.outputs for node in nodes):
        value.type = query.x.type
        value.shape = None if query.x.shape is None else ir.Shape([*query.x.shape[:-1], array_of(packed[-1]).size])
    return nodes


def _attention(node: ir.Node, query: _Projection, packed: list[ir.Value]) -> list[ir.Node]:
    attributes = {name: node.attributes[name] for name in ("num_heads", "scale") if name in node.attributes}
    inputs = [query.x, *packed, None, None, attention_bias(node)]
    return [ir.node("Attention", inputs, attributes, domain=RUNTIME_DOMAIN)]


def _split(node: ir.Node, query: _Projection, packed: list[ir.Value]) -> list[ir.Node]:
    product = _product(query, packed)
    split = ir.node("Split", product[-1].outputs, {"axis": -1, "num_outputs": 3}, num_outputs=3)
    inputs = [*split.outputs, *node.inputs[3:]]
    return [*product, split, ir.node("MultiHeadAttention", inputs, node.attributes, domain=RUNTIME_DOMAIN)]


def _projection(value: ir.Value | None) -> _Projection | None:
    """The linear layer behind a value whose numbers nobody else reads."""
    if value is None:
        return None
    sizes = tuple(user for user, _ in value.uses() if asks_for_size(user))
    uses = 1 + len(sizes)
    for operator in ("Int8Linear", "Int8StaticLinear"):
        node = producer(value, operator, domain=DOMAIN, uses=uses)
        if node is not None:
            return _of_int8(node, sizes)
    linear = linear_layer(value, uses=uses)
    if linear is None:
        return None
    return _Projection(linear.x, (linear.weight, linear.bias), (linear.add, linear.matmul), sizes)


def _of_int8(node: ir.Node, sizes: tuple[ir.Node, ...]) -> _Projection | None:
    """A projection, if weight, scale and bias are constant, and so what its activations are quantised by."""
    x, *others = node.inputs
    ranks = (2, 1, 1, 0, 0)[: len(others)]
    pairs = zip(others, ranks, strict=True)
    known = tuple(value for value, rank in pairs if value is not None and constant(value, rank) is not None)
    if x is None or len(known) != len(others):
        return None
    return _Projection(x, known[:3], (node,), sizes, known[3:])


def _packed(graph: ir.Graph, values: tuple[ir.Value, ...]) -> ir.Value:
    """A new initializer: constants side by side along their last axis, named after all of them."""
    array = np.concatenate([array_of(value) for value in values], axis=-1)
    return add_constant(graph, JOINED.join(str(value.name) for value in values), array)
