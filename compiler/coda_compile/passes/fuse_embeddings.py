"""Everything that becomes of ids before the first layer in one operator."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from coda_compile.passes.declining import Declining
from coda_compile.passes.values import add_constant, array_of, made_by
from coda_ops import DOMAIN


@dataclass(frozen=True)
class _Lookup:
    """Rows of a constant table, the ids that choose them, and what a level is worth where it holds levels.

    Attributes:
        nodes: that compute it, the last first.
    """

    table: ir.Value
    ids: ir.Value
    steps: ir.Value | None
    nodes: list[ir.Node]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the table: its rows, and their width."""
        rows, width = array_of(self.table).shape
        return rows, width


class FuseEmbeddings(Declining):
    """Lookups of words, positions and, where there are, types → their sum → LayerNormalization becomes ``EmbedNorm``.

    A native kernel looks up, adds and norms token by token in the first cache, where the operators walk over all tokens
    eight times. The function bodies are what was there before.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse what matches; a norm of anything but a sum of lookups is another pass's."""
        self.declined.clear()
        modified = False
        for node in list(model.graph):
            if (node.domain, node.op_type) == ("", "LayerNormalization") and _sums_lookups(node):
                reason = _fuse(model.graph, node)
                modified |= reason is None
                self.declined.update([reason] if reason else ())
        return ir.passes.PassResult(model, modified)


def _sums_lookups(norm: ir.Node) -> bool:
    terms, _ = _terms(norm.inputs[0])
    return len(terms) > 1 and any(_lookup(term) is not None for term in terms)


def _terms(value: ir.Value | None) -> tuple[list[ir.Value | None], list[ir.Node]]:
    """What adds up to a value, in order, and the sums that do it, the last first."""
    add = made_by(value, "Add")
    if add is None:
        return [value], []
    left, sums = _terms(add.inputs[0])
    right, more = _terms(add.inputs[1])
    return left + right, [add, *sums, *more]


def _lookup(value: ir.Value | None) -> _Lookup | None:
    gather = made_by(value, "Gather")
    if gather is not None:
        return _gathered(gather)
    scaled = made_by(value, "Mul")
    cast = made_by(None if scaled is None else scaled.inputs[0], "Cast")
    levels = made_by(None if cast is None else cast.inputs[0], "Gather")
    steps = made_by(None if scaled is None else scaled.inputs[1], "Gather")
    if scaled is None or cast is None or levels is None or steps is None or levels.inputs[1] is not steps.inputs[1]:
        return None
    found, worth = _gathered(levels), _gathered(steps)
    if found is None or worth is None or worth.shape != (found.shape[0], 1):
        return None
    return _Lookup(found.table, found.ids, worth.table, [scaled, cast, levels, steps])


def _gathered(gather: ir.Node) -> _Lookup | None:
    """A lookup of rows by ids of two axes."""
    table, ids = gather.inputs
    if table is None or ids is None or ids.shape is None or len(ids.shape) != 2 or ids.dtype != ir.DataType.INT64:
        return None
    tensor = ir.convenience.get_const_tensor(table)
    rows = tensor is not None and len(tensor.shape) == 2 and gather.attributes.get_int("axis", 0) == 0
    return _Lookup(table, ids, None, [gather]) if rows else None


def _fuse(graph: ir.Graph, norm: ir.Node) -> str | None:
    """Fuse one; returns why not, or ``None``."""
    terms, sums = _terms(norm.inputs[0])
    found = [lookup for term in terms if (lookup := _lookup(term)) is not None]
    if len(found) != len(terms) or not 2 <= len(found) <= 3:
        return "what it adds up is not two or three lookups"
    words = next((one for one in found if one.ids in graph.inputs), None)
    rounded = [one for one in found if one.steps is not None]
    if words is None or rounded not in ([], [words]):
        return "the lookup by an input of the model is not the first, or others are rounded"
    scale, bias = (*norm.inputs, None, None)[1:3]
    if scale is None or bias is None or norm.attributes.get_int("axis", -1) not in (-1, 2):
        return "it has no bias, or norms more than the last axis"
    *types, positions = [one for one in found if one is not words]
    if types:
        kind, kind_ids = types[0].table, types[0].ids
    else:
        kind = add_constant(graph, f"{norm.name}.no_types", np.zeros((1, words.shape[1]), np.float32))
        kind_ids = add_constant(graph, f"{norm.name}.no_type", np.zeros((1, 1), np.int64))
    looked_up = [kind, kind_ids, positions.table, positions.ids]
    own = [words.table, words.ids] if words.steps is None else [words.table, words.steps, words.ids]
    fused = ir.node(
        "EmbedNorm" if words.steps is None else "Int8EmbedNorm",
        [*own, *looked_up, scale, bias],
        {"epsilon": norm.attributes.get_float("epsilon", 1e-5)},
        domain=DOMAIN,
    )
    fused.metadata_props.update(norm.metadata_props)
    old = [norm, *sums, *(node for one in found for node in one.nodes)]
    ir.convenience.replace_nodes_and_values(graph, norm, old, [fused], norm.outputs[:1], fused.outputs)
    return None
