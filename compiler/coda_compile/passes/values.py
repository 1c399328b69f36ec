"""Helpers of passes: queries on values, adding constants, replacing nodes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

ATTENTION_BIAS = 5  # the input of MultiHeadAttention, and of Attention, that is added to the scores


def producer(value: ir.Value | None, op_type: str, *, domain: str = "", uses: int | None = 1) -> ir.Node | None:
    """The node that computes a value, if it is of an operator and the value is its own.

    Args:
        uses: how many there are of the value; ``None`` for any number. An output of the graph is nobody's own.
    """
    node = None if value is None else value.producer()
    if value is None or node is None or value.is_graph_output() or uses not in (None, len(value.uses())):
        return None
    return node if (node.domain, node.op_type) == (domain, op_type) else None


def either_order(node: ir.Node) -> Iterator[tuple[ir.Value | None, ir.Value | None]]:
    """The two inputs of a commutative node, as they are and swapped."""
    first, second = node.inputs
    yield first, second
    yield second, first


def constant(value: ir.Value | None, rank: int | None = None) -> ir.TensorProtocol | None:
    """The tensor of a constant value, of a rank if one is given; ``None`` for any other value."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor if tensor is not None and rank in (None, len(tensor.shape)) else None


def attention_bias(node: ir.Node) -> ir.Value | None:
    """What a MultiHeadAttention adds to the scores, [batch or 1, heads or 1, queries, keys]; ``None`` for nothing."""
    return node.inputs[ATTENTION_BIAS] if len(node.inputs) > ATTENTION_BIAS else None


def array_of(value: ir.Value | None) -> NDArray[Any]:
    """The numbers of a value that is known to be constant."""
    tensor = constant(value)
    assert tensor is not None
    return np.asarray(tensor.numpy())


def is_bias(value: ir.Value | None, x: ir.Value | None) -> bool:
    """Whether a value is a constant vector as long as the last axis of x, [..., width]."""
    tensor = constant(value, 1)
    return x is not None and x.shape is not None and tensor is not None and tuple(tensor.shape) == (x.shape[-1],)


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer of an array's own type; its name ends otherwise where it is taken."""
    while name in graph.initializers:
        name += "'"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace(graph: ir.Graph, node: ir.Node, old: Sequence[ir.Node], new: Sequence[ir.Node]) -> None:
    """Compute the first outputs of a node by new nodes that carry its tags.

    Args:
        old: the nodes to remove, the node among them, each before those that it reads.
        new: the nodes to insert in its place; the last one's outputs stand for the node's.
    """
    for each in new:
        each.metadata_props.update(node.metadata_props)
    outputs = new[-1].outputs
    ir.convenience.replace_nodes_and_values(graph, node, old, new, node.outputs[: len(outputs)], outputs)
