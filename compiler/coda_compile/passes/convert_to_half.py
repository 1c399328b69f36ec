"""Compute in float16, but for what decides and for what answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.defs import OpSchema

from coda_compile.errors import CompileError
from coda_compile.export import TAGS
from coda_compile.passes.values import add_constant, constant
from coda_ops.catalogue import find_operator
from coda_targets.routing import LAYER_TAG, ROLE_TAG

_FLOATS = _FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_TENSOR = "tensor(float16)"
_LARGEST = float(np.finfo(np.float16).max)
_OVERFLOWS = 65520.0  # the first number that float16 rounds to infinity
_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
_FILL = 2.0**15  # for the numbers that fill masks: half of the range is left for what is added to them
_MOVES = {"Gather", "GatherND", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Flatten", "Identity"}


class ConvertToHalf(ir.passes.InPlacePass):
    """float32 → float16 for embeddings, attention, feed-forward, adapters and norms.

    In float32 stay routers, ``Route`` and gates, whose rounding would route other tokens; floats that become integers,
    as distances do that are sorted into buckets; pooling, head and detector, which add up tokens or squares, and are
    small; what an operator's schema has in float32 alone; and inputs and outputs of the graph. A value that both sides
    read is cast once. Between a sum and its norm stands no ``Cast``, so that runtimes fuse what they fuse in float32.
    It runs once constants are initializers, before function bodies.

    Single numbers keep their purpose: one beyond the range, which fills a mask, becomes ±32768, and one that would
    become 0, as the epsilon of a norm, the smallest number of float16.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert the main graph.

        Raises:
            CompileError: a weight that is too large for float16.
        """
        return ir.passes.PassResult(model, _Conversion(model).run())


class _Conversion:
    """One graph on its way."""

    def __init__(self, model: ir.Model) -> None:
        self._graph, self._imports, self._modified = model.graph, model.opset_imports, False
        self._other = {(cast.inputs[0], cast.outputs[0].dtype): cast.outputs[0] for cast in self._graph if _casts(cast)}
        self._halved: list[tuple[ir.Value, ir.Value]] = []  # constants in float32, and what became of them

    def run(self) -> bool:
        """Convert all of it; returns whether that changed anything."""
        wide = _in_float32(self._graph)
        for node in list(self._graph):
            if not _casts(node):
                self._convert(node, wide=node in wide and not _moves_half(node))
        for i, value in enumerate(self._graph.outputs):
            if value.dtype == _HALF:
                self._hand_out(i, value)
        for old, new in self._halved:
            if not old.uses() and old.name is not None:
                name = old.name
                del self._graph.initializers[name]
                new.name = name
        return self._modified

    def _convert(self, node: ir.Node, *, wide: bool) -> None:
        """Give a node its inputs as it shall read them, and its outputs the types that follow."""
        schema = _schema(node, self._imports)
        for i, value in enumerate(node.inputs):
            half = not wide and (schema is None or _allows_half(schema, schema.inputs, i))
            given, wanted = (_FLOAT, _HALF) if half else (_HALF, _FLOAT)
            if value is not None and value.dtype == given:
                node.replace_input_with(i, self._as(value, wanted, before=node))
        for i, value in enumerate(node.outputs):
            if not wide and value.dtype == _FLOAT and (schema is None or _allows_half(schema, schema.outputs, i)):
                value.type, self._modified = ir.TensorType(_HALF), True
                _adjust(node)

    def _as(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        """A value in the other type: a constant of its own, or one ``Cast`` for all that read it."""
        if (value, dtype) not in self._other:
            self._modified = True
            tensor = constant(value)
            if tensor is not None and dtype == _HALF and value.name in self._graph.initializers:
                new = add_constant(self._graph, f"{value.name}.half", _rounded(tensor.numpy(), value.name))
                self._halved.append((value, new))
                self._other[value, dtype] = new
            else:
                self._other[value, dtype] = self._insert(value, dtype, before)
        return self._other[value, dtype]

    def _insert(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        cast = ir.node("Cast", [value], {"to": int(dtype)})
        cast.metadata_props.update({key: before.metadata_props[key] for key in TAGS if key in before.metadata_props})
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(dtype), value.shape
        self._graph.insert_before(before, cast)
        return cast.outputs[0]

    def _hand_out(self, i: int, value: ir.Value) -> None:
        """Have an output of the graph be float32, under its name."""
        producer = value.producer()
        assert producer is not None
        wide = self._other.get((value, _FLOAT))
        if wide is None or wide.is_graph_output():
            wide = self._insert(value, _FLOAT, producer)
            cast = wide.producer()
            assert cast is not None
            self._graph.remove(cast)
            self._graph.insert_after(producer, cast)
        name, self._modified = value.name, True
        value.name, wide.name = f"{name}.half", name
        self._graph.outputs[i] = wide


def _in_float32(graph: ir.Graph) -> set[ir.Node]:
    """Routers and their decisions, what integers are computed by, and what follows the last layer and its norm."""
    wide = set[ir.Node]()
    inside = set[ir.Value | None]()  # what layers read, directly or not
    counted = set[ir.Value | None]()  # floats that become integers, such as distances that are sorted into buckets
    for node in reversed(list(graph)):
        role = node.metadata_props.get(ROLE_TAG)
        if LAYER_TAG in node.metadata_props or role == "norm" or inside.intersection(node.outputs):
            inside.update(node.inputs)
        else:
            wide.add(node)
        rounds = node.op_type == "Cast" and node.outputs[0].dtype not in _FLOATS
        if rounds or counted.intersection(node.outputs):
            counted.update(value for value in node.inputs if value is not None and value.dtype in _FLOATS)
            wide.add(node)
        if node.op_type == "Route" or role == "router":
            wide.add(node)
    return wide


def _casts(node: ir.Node) -> bool:
    """Whether a node does nothing but change between the two types."""
    value = node.inputs[0] if node.op_type == "Cast" else None
    return value is not None and {value.dtype, node.outputs[0].dtype} == {_FLOAT, _HALF}


def _moves_half(node: ir.Node) -> bool:
    """Whether a node computes nothing, and moves what is in float16 already."""
    value = node.inputs[0] if node.op_type in _MOVES else None
    return value is not None and value.dtype == _HALF


def _schema(node: ir.Node, imports: Mapping[str, int]) -> OpSchema | None:
    """Of the standard's operators and our own; nothing of onnxruntime's, which takes either type throughout."""
    operator, version = find_operator(node.domain, node.op_type), imports.get(node.domain, 0)
    if operator is not None:
        return operator.schema()
    known = onnx.defs.has(node.op_type, version, node.domain)
    return onnx.defs.get_schema(node.op_type, version, node.domain) if known else None


def _allows_half(schema: OpSchema, formals: Sequence[OpSchema.FormalParameter], i: int) -> bool:
    """Whether an input or output may be float16; the last formal one may stand for many."""
    kind = formals[min(i, len(formals) - 1)].type_str
    return any(one.type_param_str == kind and _TENSOR in one.allowed_type_strs for one in schema.type_constraints)


def _adjust(node: ir.Node) -> None:
    """Attributes that say or mean float32."""
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
    elif node.op_type == "ConstantOfShape":
        fill = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_rounded(fill, node.name)))
    elif node.attributes.get_float("epsilon", 1.0) < _SMALLEST:
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", _SMALLEST)


def _rounded(array: NDArray[Any], name: str | None) -> NDArray[np.float16]:
    """The nearest numbers of float16; single ones as the pass says."""
    size = np.abs(array)
    if array.size == 1:
        size = np.where(np.isfinite(size) & (size > _LARGEST), _FILL, np.where(size > 0, np.fmax(size, _SMALLEST), 0))
        return np.where(np.isnan(array), array, np.copysign(size, array)).astype(np.float16)
    if bool((np.isfinite(size) & (size >= _OVERFLOWS)).any()):
        raise CompileError(
            f"{name} has weights of up to {size[np.isfinite(size)].max():.3g}, and float16 ends at {_LARGEST:.0f}: use "
            "another precision"
        )
    return array.astype(np.float16)
