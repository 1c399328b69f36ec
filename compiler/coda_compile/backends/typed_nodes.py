"""Nodes with the types of their values, those of function bodies too: what checkers of a runtime's operators read."""

from collections.abc import Iterator, Mapping

import onnx
import onnx.inliner
import onnx.shape_inference
import onnx_ir as ir
from onnx import NodeProto, helper

_SIZES = ("Shape", "Size", "Constant")  # what starts arithmetic on the host

Types = Mapping[str, str]  # element types by name of value, as onnx names them


def typed_nodes(model: ir.Model) -> Iterator[tuple[NodeProto, Types, bool]]:
    """Every node of a graph, its subgraphs and the function bodies that it calls.

    Yields:
        The node, the types of the values in sight, and whether it computes nothing but sizes.
    """
    yield from _nodes(_inlined(model).graph, {}, set(model.graph.initializers))


def _inlined(model: ir.Model) -> onnx.ModelProto:
    """The nodes of a graph and of the bodies that it calls, with the types of values and without weights."""
    graph, serde = model.graph, ir.serde
    given = dict.fromkeys((*graph.inputs, *graph.initializers.values()))
    made = [value for node in graph for value in node.outputs if value.type is not None and not value.is_graph_output()]
    proto = helper.make_model(
        helper.make_graph(
            [serde.serialize_node(node) for node in graph],
            "graph",
            [serde.serialize_value(value) for value in given],
            [serde.serialize_value(value) for value in graph.outputs],
            value_info=[serde.serialize_value(value) for value in made],
        ),
        functions=[serde.serialize_function(function) for function in model.functions.values()],
        opset_imports=[helper.make_opsetid(*item) for item in model.opset_imports.items()],
        ir_version=model.ir_version,
    )
    return onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(proto))


def _nodes(graph: onnx.GraphProto, outer: Types, sizes: set[str]) -> Iterator[tuple[NodeProto, Types, bool]]:
    """Every node with the types of the values in sight, and whether it computes nothing but sizes.

    Args:
        outer: types of the values around the graph.
        sizes: names of constants and of values in the host's memory; it grows.
    """
    kinds = onnx.TensorProto.DataType
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {**outer, **{one.name: kinds.Name(one.type.tensor_type.elem_type).lower() for one in values}}
    for node in graph.node:
        read = [name for name in node.input if name]
        of_sizes = node.op_type in _SIZES or all(name in sizes and types.get(name) == "int64" for name in read)
        if of_sizes:
            sizes.update(node.output)
        yield node, types, of_sizes
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g, types, sizes)
