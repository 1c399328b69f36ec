"""Fuse the lookups of words, types and positions, their sum and its layer norm."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from coda_compile.passes.fuse_norms import check_norm
from coda_compile.passes.fusion import NodeFusion
from coda_compile.passes.outcome import Declined, Fused, NotHere, Outcome
from coda_compile.passes.values import add_constant, constant, producer, replace
from coda_ops import DOMAIN


@dataclass(frozen=True)
class _Lookup:
    """Rows of a constant table by ids, dequantised by a scale of each row where the table is quantised.

    Attributes:
        table: [rows, width].
        ids: [batch, tokens].
        scales: [rows, 1] of a quantised table.
        nodes: that compute it, the last first.
    """

    table: ir.Value
    ids: ir.Value
    scales: ir.Value | None
    nodes: list[ir.Node]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the table: its rows, and their width."""
        tensor = constant(self.table, 2)
        assert tensor is not None
        rows, width = tensor.shape.numpy()
        return rows, width


class FuseEmbeddings(NodeFusion):
    """Lookups of tokens, positions and, where there are, types → their sum → LayerNormalization becomes ``EmbedNorm``.

    A native kernel looks up, adds and normalises token by token in the first cache, where the operators walk over all
    tokens eight times. The function bodies are what was there before. A norm of anything but a sum of lookups is
    another pass's.
    """

    anchor = ("", "LayerNormalization")

    def attempt(self, graph: ir.Graph, node: ir.Node) -> Outcome:
        """Fuse one norm with the lookups that its input adds up."""
        terms, sums = _terms(node.inputs[0])
        lookups = [lookup for term in terms if (lookup := _lookup(term)) is not None]
        if len(terms) < 2 or not lookups:
            return NotHere()
        if len(lookups) != len(terms) or not 2 <= len(lookups) <= 3:
            return Declined("what it adds up is not two or three lookups", node.inputs[0])
        tokens = next((lookup for lookup in lookups if lookup.ids in graph.inputs), None)
        if tokens is None:
            return Declined("none of its lookups is by an input of the graph", node.inputs[0])
        others = [lookup for lookup in lookups if lookup is not tokens]
        quantized = next((lookup for lookup in others if lookup.scales is not None), None)
        if quantized is not None:
            return Declined("a lookup of positions or types is quantised", quantized.table)
        if (declined := check_norm(node, 3)) is not None:
            return declined
        *types, positions = others
        types_table, type_ids = (types[0].table, types[0].ids) if types else _no_types(graph, node, tokens.shape[1])
        scales = [] if tokens.scales is None else [tokens.scales]
        looked_up = [tokens.table, *scales, tokens.ids]
        fused = ir.node(
            "EmbedNorm" if tokens.scales is None else "Int8EmbedNorm",
            [*looked_up, types_table, type_ids, positions.table, positions.ids, *node.inputs[1:3]],
            {"epsilon": node.attributes.get_float("epsilon", 1e-5)},
            domain=DOMAIN,
        )
        replace(graph, node, [node, *sums, *(each for lookup in lookups for each in lookup.nodes)], [fused])
        return Fused()


def _no_types(graph: ir.Graph, norm: ir.Node, width: int) -> tuple[ir.Value, ir.Value]:
    """A table of one row of zeros, and the id of that row for every token."""
    table = add_constant(graph, f"{norm.name}.no_types", np.zeros((1, width), np.float32))
    return table, add_constant(graph, f"{norm.name}.no_type", np.zeros((1, 1), np.int64))


def _terms(value: ir.Value | None) -> tuple[list[ir.Value | None], list[ir.Node]]:
    """What adds up to a value, in order, and the sums that do it, the last first."""
    add = producer(value, "Add")
    if add is None:
        return [value], []
    left, sums = _terms(add.inputs[0])
    right, more = _terms(add.inputs[1])
    return left + right, [add, *sums, *more]


def _lookup(value: ir.Value | None) -> _Lookup | None:
    """The lookup behind a value, of floats or of int8 and scales."""
    gather = producer(value, "Gather")
    if gather is not None:
        return _gathered(gather)
    product = producer(value, "Mul")
    cast = producer(None if product is None else product.inputs[0], "Cast")
    rows = producer(None if cast is None else cast.inputs[0], "Gather")
    scales = producer(None if product is None else product.inputs[1], "Gather")
    if product is None or cast is None or rows is None or scales is None or rows.inputs[1] is not scales.inputs[1]:
        return None
    quantized, scaling = _gathered(rows), _gathered(scales)
    if quantized is None or scaling is None or scaling.shape != (quantized.shape[0], 1):
        return None
    return _Lookup(quantized.table, quantized.ids, scaling.table, [product, cast, rows, scales])


def _gathered(gather: ir.Node) -> _Lookup | None:
    """A lookup of rows of a constant table by ids of two axes."""
    table, ids = gather.inputs
    if table is None or ids is None or ids.shape is None or len(ids.shape) != 2 or ids.dtype != ir.DataType.INT64:
        return None
    by_row = constant(table, 2) is not None and gather.attributes.get_int("axis", 0) == 0
    return _Lookup(table, ids, None, [gather]) if by_row else None
