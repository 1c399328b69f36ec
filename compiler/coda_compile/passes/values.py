"""What passes ask of values, and how they add constants."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def made_by(value: ir.Value | None, op_type: str, *, domain: str = "", readers: int | None = 1) -> ir.Node | None:
    """The node of an operator that makes a value with so many readers, ``None`` for any number, no output of the graph
    among them."""
    node = None if value is None else value.producer()
    if value is None or node is None or value.is_graph_output() or readers not in (None, len(value.uses())):
        return None
    return node if (node.domain, node.op_type) == (domain, op_type) else None


def both_ways(node: ir.Node) -> Iterator[tuple[ir.Value | None, ir.Value | None]]:
    """The two inputs of a node that takes them in either order."""
    first, second = node.inputs
    yield first, second
    yield second, first


def array_of(value: ir.Value | None) -> NDArray[Any]:
    """The numbers of a value that is constant."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    assert tensor is not None
    return np.asarray(tensor.numpy())


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer of an array's own type; its name ends otherwise where it is taken."""
    while name in graph.initializers:
        name += "'"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value
