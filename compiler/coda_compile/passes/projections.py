"""Projections of attention: finding them, and several of one input as one linear layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from coda_compile.passes.linear import linear_layer
from coda_compile.passes.token_wise import asks_for_size
from coda_compile.passes.values import (
    ATTENTION_BIAS,
    add_constant,
    array_of,
    attention_bias,
    constant,
    producer,
)
from coda_ops import DOMAIN
from coda_targets.routing import JOINED


@dataclass(frozen=True)
class Projection:
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


def why_apart(parts: Sequence[Projection]) -> str | None:
    """Why projections of one input cannot be one linear layer; ``None`` where they can."""
    first, *others = parts
    if any(each.int8 != first.int8 for each in others):
        return "some of the projections are quantised and others are not"
    if any(each.static != first.static for each in others):
        return "the projections quantise their input differently"
    return None


def pack(graph: ir.Graph, parts: Sequence[Projection]) -> list[ir.Value]:
    """New constants of one linear layer in the place of several; who asks for a result's size asks its input."""
    constants = zip(*(each.constants for each in parts), strict=True)
    packed = [_side_by_side(graph, each) for each in constants]
    for part in parts:
        for size in part.sizes:
            size.replace_input_with(0, part.x)
    return packed


def product(like: Projection, packed: Sequence[ir.Value]) -> list[ir.Node]:
    """The linear layer of packed constants, [batch, tokens, all their widths]."""
    if like.int8:
        operator = "Int8StaticLinear" if like.quantization else "Int8Linear"
        nodes = [ir.node(operator, [like.x, *packed, *like.quantization], domain=DOMAIN)]
    else:
        weight, bias = packed
        multiplied = ir.node("MatMul", [like.x, weight])
        nodes = [multiplied, ir.node("Add", [multiplied.outputs[0], bias])]
    for (value,) in (node.outputs for node in nodes):
        value.type = like.x.type
        value.shape = None if like.x.shape is None else ir.Shape([*like.x.shape[:-1], array_of(packed[-1]).size])
    return nodes


def key_bias(attention: ir.Node) -> ir.Value | None:
    """What a MultiHeadAttention adds to the scores before it is copied for each query, [batch, 1, 1, keys]; ``None``
    where it is more than one number for each key."""
    expand = producer(attention_bias(attention), "Expand", uses=None)
    bias = None if expand is None else expand.inputs[0]
    known = bias is not None and bias.shape is not None and len(bias.shape) == 4 and list(bias.shape[1:3]) == [1, 1]
    return bias if known else None


def has_more(attention: ir.Node) -> bool:
    """Whether a MultiHeadAttention has inputs or outputs beside queries, keys, values and what is added to scores."""
    others = [value for i, value in enumerate(attention.inputs[3:], 3) if i != ATTENTION_BIAS and value is not None]
    return bool(others) or len(attention.outputs) != 1


def heads_and_scale(attention: ir.Node, width: int) -> dict[str, int | float]:
    """Attributes of our operators of attention, after those of a MultiHeadAttention."""
    heads = attention.attributes.get_int("num_heads", 1)
    return {"num_heads": heads, "scale": attention.attributes.get_float("scale", float(width / heads) ** -0.5)}


def projection(value: ir.Value | None) -> Projection | None:
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
    return Projection(linear.x, (linear.weight, linear.bias), (linear.add, linear.matmul), sizes)


def _of_int8(node: ir.Node, sizes: tuple[ir.Node, ...]) -> Projection | None:
    """A projection, if weight, scale and bias are constant, and so what its activations are quantised by."""
    x, *others = node.inputs
    ranks = (2, 1, 1, 0, 0)[: len(others)]
    pairs = zip(others, ranks, strict=True)
    known = tuple(value for value, rank in pairs if value is not None and constant(value, rank) is not None)
    if x is None or len(known) != len(others):
        return None
    return Projection(x, known[:3], (node,), sizes, known[3:])


def _side_by_side(graph: ir.Graph, values: Sequence[ir.Value]) -> ir.Value:
    """A new initializer: constants side by side along their last axis, named after all of them."""
    array = np.concatenate([array_of(value) for value in values], axis=-1)
    return add_constant(graph, JOINED.join(str(value.name) for value in values), array)
