"""Query, key and value of self-attention from one matrix product."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from coda_compile.passes.declining import Declining
from coda_compile.passes.token_wise import asks_for_size
from coda_compile.passes.values import add_constant, array_of, both_ways, made_by
from coda_ops import DOMAIN, RUNTIME_DOMAIN
from coda_targets.routing import JOINED

_BIAS = 5  # the input of both operators that is added to the scores


@dataclass(frozen=True)
class _Projection:
    """A product of x with constants, the nodes that compute it, and others that ask how many texts or tokens it has.

    Attributes:
        constants: weight and bias; weight, scale and bias of one in eight bits. Outputs lie along their last axes.
        rounding: step and zero of one in eight bits whose activations share them.
    """

    x: ir.Value
    constants: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]
    sizes: tuple[ir.Node, ...]
    rounding: tuple[ir.Value, ...] = ()

    @property
    def rounded(self) -> bool:
        """Whether it is in eight bits."""
        return len(self.constants) == 3

    @property
    def levels(self) -> list[float]:
        """What it is rounded to: nothing where each token has a step of its own."""
        return [array_of(value).item() for value in self.rounding]


class FuseProjections(Declining):
    """``MultiHeadAttention`` over three projections of one input → one product with packed weights.

    One large product keeps the cores busier than three, and in eight bits rounds its input once. ``SelfAttention``
    reads what it gives where it lies, if all that is added to the scores is one number for each key. Otherwise, as
    with relative positions, it is ``com.microsoft.Attention`` with a product of its own; in eight bits what it gives
    is split. Queries and keys of different tokens (k-to-all) stay apart.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse what matches."""
        return self.fuse_each(model, RUNTIME_DOMAIN, "MultiHeadAttention", _fuse)


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
    if not query.rounded == key.rounded == value.rounded:
        return "some of the projections are in eight bits"
    if not query.levels == key.levels == value.levels:
        return "the projections round their input each in a way of its own"
    packed = [_packed(graph, each) for each in zip(query.constants, key.constants, value.constants, strict=True)]
    for size in (size for part in (query, key, value) for size in part.sizes):
        size.replace_input_with(0, query.x)
    new = _of_keys(graph, node, query, packed) or (_rounded if query.rounded else _attention)(node, query, packed)
    for fused in new:
        fused.metadata_props.update(node.metadata_props)
    old = [node, *(old for part in (query, key, value) for old in reversed(part.nodes))]
    ir.convenience.replace_nodes_and_values(graph, node, old, new, node.outputs, new[-1].outputs)
    return None


def _of_keys(graph: ir.Graph, node: ir.Node, query: _Projection, packed: list[ir.Value]) -> list[ir.Node]:
    """The product and SelfAttention; nothing where more than one number for each key is added."""
    expand = made_by(node.inputs[_BIAS], "Expand", readers=None) if len(node.inputs) > _BIAS else None
    bias = None if expand is None else expand.inputs[0]
    heads = node.attributes.get_int("num_heads", 1)
    biases = ir.convenience.get_const_tensor(packed[-1])
    if biases is None or bias is None or bias.shape is None or len(bias.shape) != 4 or list(bias.shape[1:3]) != [1, 1]:
        return []
    product = _product(query, packed)
    scale = node.attributes.get_float("scale", float(biases.size / 3 / heads) ** -0.5)
    attributes = {"num_heads": heads, "scale": scale}
    return [*product, ir.node("SelfAttention", [product[-1].outputs[0], bias], attributes, domain=DOMAIN)]


def _product(query: _Projection, packed: list[ir.Value]) -> list[ir.Node]:
    """All three projections in one, [batch, tokens, 3 * width]."""
    if query.rounded:
        operator = "Int8StaticLinear" if query.rounding else "Int8Linear"
        nodes = [ir.node(operator, [query.x, *packed, *query.rounding], domain=DOMAIN)]
    else:
        weight, bias = packed
        product = ir.node("MatMul", [query.x, weight])
        nodes = [product, ir.node("Add", [product.outputs[0], bias])]
    for (value,) in (node.outputs for node in nodes):
        value.type = query.x.type
        value.shape = None if query.x.shape is None else ir.Shape([*query.x.shape[:-1], array_of(packed[-1]).size])
    return nodes


def _attention(node: ir.Node, query: _Projection, packed: list[ir.Value]) -> list[ir.Node]:
    added = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
    attributes = {name: node.attributes[name] for name in ("num_heads", "scale") if name in node.attributes}
    inputs = [query.x, *packed, None, None, added]
    return [ir.node("Attention", inputs, attributes, domain=RUNTIME_DOMAIN)]


def _rounded(node: ir.Node, query: _Projection, packed: list[ir.Value]) -> list[ir.Node]:
    product = _product(query, packed)
    split = ir.node("Split", product[-1].outputs, {"axis": -1, "num_outputs": 3}, num_outputs=3)
    inputs = [*split.outputs, *node.inputs[3:]]
    return [*product, split, ir.node("MultiHeadAttention", inputs, node.attributes, domain=RUNTIME_DOMAIN)]


def _projection(value: ir.Value | None) -> _Projection | None:
    """The product behind a value whose numbers nobody else reads; ``None`` for anything else."""
    if value is None:
        return None
    sizes = tuple(user for user, _ in value.uses() if asks_for_size(user))
    for operator in ("Int8Linear", "Int8StaticLinear"):
        rounded = made_by(value, operator, domain=DOMAIN, readers=1 + len(sizes))
        if rounded is not None:
            x, weight, scale, bias, *rounding = rounded.inputs
            return _of(x, [weight, scale, bias], (rounded,), sizes, rounding)
    add = made_by(value, "Add", readers=1 + len(sizes))
    if add is None:
        return None
    for product, bias in both_ways(add):
        matmul = made_by(product, "MatMul")
        if matmul is not None and (found := _of(matmul.inputs[0], [matmul.inputs[1], bias], (matmul, add), sizes)):
            return found
    return None


def _of(
    x: ir.Value | None,
    constants: list[ir.Value | None],
    nodes: tuple[ir.Node, ...],
    sizes: tuple[ir.Node, ...],
    rounding: Sequence[ir.Value | None] = (),
) -> _Projection | None:
    weight, *vectors = constants
    known, levels = (tuple(v for v in values if v is not None) for values in (constants, rounding))
    fits = _constant(weight, 2) and all(_constant(vector, 1) for vector in vectors)
    fits &= all(_constant(value, 0) for value in rounding)
    return _Projection(x, known, nodes, sizes, levels) if x is not None and fits else None


def _constant(value: ir.Value | None, rank: int) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and len(tensor.shape) == rank


def _packed(graph: ir.Graph, values: tuple[ir.Value, ...]) -> ir.Value:
    """A new initializer: constants side by side along their last axis, named after all of them."""
    array = np.concatenate([array_of(value) for value in values], axis=-1)
    return add_constant(graph, JOINED.join(str(value.name) for value in values), array)
