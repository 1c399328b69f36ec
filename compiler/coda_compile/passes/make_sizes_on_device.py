"""Sizes that kernels of a device compute with: made there, and not copied from the host."""

import numpy as np
import onnx_ir as ir

from coda_compile.export import TAGS
from coda_compile.passes.values import add_constant

_INT64 = ir.DataType.INT64
_ONE = "coda.one"
# What runtimes leave on the host where all of its inputs lie there, and what reads sizes element by element elsewhere.
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Mod", "Min", "Max"}
_ON_HOST = _ARITHMETIC | {"Concat", "Gather", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
_READERS = _ARITHMETIC | {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Where"}


class MakeSizesOnDevice(ir.passes.InPlacePass):
    """A size beside a tensor, as in distance + middle → ``Range`` from it to the next number, which starts on the host
    and ends on the device.

    Sizes are known on the host alone. A kernel that reads one would wait for a copy in every run, and no CUDA graph
    could be captured.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace all of them in the main graph."""
        graph, made = model.graph, dict[ir.Value, ir.Value]()
        sizes = _sizes(graph)
        for node in list(graph):
            if node.domain or node.op_type not in _READERS or node.outputs[0] in sizes:
                continue
            for i, value in enumerate(node.inputs):
                if value in sizes:
                    assert value is not None
                    if value not in made:
                        made[value] = _on_device(graph, value, node)
                    node.replace_input_with(i, made[value])
        return ir.passes.PassResult(model, bool(made))


def _sizes(graph: ir.Graph) -> set[ir.Value]:
    """Single numbers that are computed from shapes alone."""
    found, host = set[ir.Value](), set[ir.Value]()
    for node in graph:
        given = [value for value in node.inputs if value is not None]
        of_shapes = node.op_type in ("Shape", "Size")
        if node.domain == "" and node.op_type in _ON_HOST and node.outputs[0].dtype == _INT64:
            of_shapes = bool(host.intersection(given)) and all(
                value in host or value.const_value is not None for value in given
            )
        if of_shapes:
            host.update(node.outputs)
            found.update(value for value in node.outputs if value.shape is not None and value.shape in ((), (1,)))
    return found


def _on_device(graph: ir.Graph, size: ir.Value, before: ir.Node) -> ir.Value:
    """[size] as a kernel made it."""
    one = graph.initializers.get(_ONE) or add_constant(graph, _ONE, np.array(1, np.int64))
    nodes = [] if size.shape is not None and len(size.shape) == 0 else [ir.node("Squeeze", [size])]
    start = nodes[-1].outputs[0] if nodes else size
    end = ir.node("Add", [start, one])
    nodes += [end, ir.node("Range", [start, end.outputs[0], one])]
    for node in nodes:
        node.metadata_props.update({key: before.metadata_props[key] for key in TAGS if key in before.metadata_props})
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(_INT64), ir.Shape([])
    nodes[-1].outputs[0].shape = ir.Shape([1])
    graph.insert_before(before, nodes)
    return nodes[-1].outputs[0]
