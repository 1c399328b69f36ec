"""Take out Identity nodes that nothing needs."""

import onnx_ir as ir


class EliminateIdentities(ir.passes.InPlacePass):
    """Who reads an Identity's output → reads its input.

    One stays where a graph gives by it what the graph does not compute itself (an input, a weight, a value from around
    a subgraph), or what it gives under another name as well. onnx_ir's own pass takes out some of these.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Take them out of the graph, its subgraphs and the functions."""
        modified = False
        graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        for graph in graphs:
            for node in list(ir.traversal.RecursiveGraphIterator(graph)):
                modified |= _eliminate(node)
        return ir.passes.PassResult(model, modified)


def _eliminate(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "Identity"):
        return False
    (value,), (output,) = node.inputs, node.outputs
    if value is None or node.graph is None:
        return False
    given, producer = output.is_graph_output(), value.producer()
    if given and (producer is None or producer.graph is not node.graph or value.is_graph_output()):
        return False
    value.shape = _merged(value.shape, output.shape)
    value.type = value.type or output.type
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    if given:
        value.name = output.name
    node.graph.remove(node, safe=True)
    return True


def _merged(own: ir.Shape | None, other: ir.Shape | None) -> ir.Shape | None:
    """What either shape says, the first one's word where both name a size."""
    if own is None or other is None or len(own) != len(other):
        return other if own is None else own
    return ir.Shape([_size(*sizes) for sizes in zip(own, other, strict=True)])


def _size(own: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    if isinstance(own, int) or isinstance(other, int):
        return own if isinstance(own, int) else other
    return other if own.value is None else own
