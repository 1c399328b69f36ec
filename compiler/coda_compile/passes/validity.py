"""What a graph has to be whatever it computes: every value is given once, before it is read."""

from collections.abc import Collection, Iterator

import onnx_ir as ir


def first_fault(model: ir.Model) -> str | None:
    """Why a graph, or one inside it, is not valid; ``None`` where it is. Operators and shapes are not looked at."""
    return next(_faults(model.graph, frozenset()), None)


def _faults(graph: ir.Graph, around: Collection[ir.Value]) -> Iterator[str]:
    """Of a graph and, inside its nodes, of those that see what is given so far.

    Args:
        around: the values that a subgraph may read.
    """
    given = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in given and value not in around:
                yield f"{node.op_type} reads {value.name!r}, which nothing before it gives"
        for inner in _graphs(node):
            yield from _faults(inner, given | set(around))
        given.update(node.outputs)
    for value in graph.outputs:
        if value not in given:
            yield f"it gives {value.name!r}, which it does not compute"
    names: set[str] = set()
    for name in (value.name for value in given):
        if name and name in names:
            yield f"two values are named {name!r}"
        names.add(name or "")


def _graphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
