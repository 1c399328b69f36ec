"""Remove attention heads whose output projection is 0."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from coda_compile.passes.fusion import NodeFusion
from coda_compile.passes.linear import linear_layer
from coda_compile.passes.outcome import Declined, Fused, NotHere, Outcome
from coda_compile.passes.token_wise import asks_for_size
from coda_compile.passes.values import add_constant, array_of, attention_bias, constant, producer
from coda_ops import RUNTIME_DOMAIN


class PruneHeads(NodeFusion):
    """Heads whose rows of the output projection are all 0 → gone from query, key, value and output projection.

    Pruning methods leave such heads behind, since they set weights to 0 and keep shapes. Exact: what they compute is
    multiplied by 0.
    """

    anchor = (RUNTIME_DOMAIN, "MultiHeadAttention")

    def attempt(self, graph: ir.Graph, node: ir.Node) -> Outcome:
        """Prune one fused attention."""
        out = _output_projection(node)
        if out is None:
            return NotHere()
        kept = _kept_heads(array_of(out.inputs[1]), node.attributes.get_int("num_heads", 0))
        if kept.all():
            return NotHere()
        bias = attention_bias(node)
        if not _same_for_all(bias):
            return Declined("its heads are biased differently", bias)
        projections = []
        for value in node.inputs[:3]:
            projection = _projection(value)
            if projection is None:
                return Declined("a projection is no linear layer that it alone reads", value)
            projections.append(projection)
        for each, weight in (pair for projection in projections for pair in projection):
            _keep(graph, each, weight, kept, axis=-1)
            _narrow(each.outputs[0], kept)
        _keep(graph, out, out.inputs[1], kept, axis=0)
        _narrow(node.outputs[0], kept)
        node.attributes["num_heads"] = ir.AttrInt64("num_heads", int(kept.sum()))
        return Fused()


def _output_projection(attention: ir.Node) -> ir.Node | None:
    """The one product with a constant that reads an attention's result, as many rows to each head."""
    readers = [user for user, _ in attention.outputs[0].uses() if not asks_for_size(user)]
    if len(readers) != 1 or (readers[0].domain, readers[0].op_type) != ("", "MatMul"):
        return None
    weight, heads = constant(readers[0].inputs[1], 2), attention.attributes.get_int("num_heads", 0)
    return readers[0] if weight is not None and heads and weight.shape.numpy()[0] % heads == 0 else None


def _kept_heads(weight: NDArray[np.float32], heads: int) -> NDArray[np.bool_]:
    """Which heads have a weight that is not 0; the first where none has, since the operator has at least one."""
    kept: NDArray[np.bool_] = np.abs(weight).reshape(heads, -1).max(1) > 0
    kept[0] |= not kept.any()
    return kept


def _same_for_all(bias: ir.Value | None) -> bool:
    """Whether a bias of [batch, heads, queries, keys] is one for all heads, before it is expanded to the queries."""
    node = None if bias is None else bias.producer()
    if node is not None and node.op_type == "Expand":
        bias = node.inputs[0]
    return bias is None or (bias.shape is not None and bias.shape[1] == 1)


def _projection(value: ir.Value | None) -> list[tuple[ir.Node, ir.Value | None]] | None:
    """The nodes of the linear layer, with a bias or without, behind a value whose numbers nobody else reads.

    Returns:
        Each with its constant.
    """
    if value is None:
        return None
    uses = 1 + sum(asks_for_size(user) for user, _ in value.uses())
    linear = linear_layer(value, uses=uses)
    if linear is not None:
        return [(linear.matmul, linear.weight), (linear.add, linear.bias)]
    matmul = producer(value, "MatMul", uses=uses)
    return [(matmul, matmul.inputs[1])] if matmul is not None and constant(matmul.inputs[1], 2) is not None else None


def _keep(graph: ir.Graph, node: ir.Node, value: ir.Value | None, kept: NDArray[np.bool_], *, axis: int) -> None:
    """Have a node read what is left of a constant along an axis without the heads that are gone."""
    assert value is not None
    array = array_of(value)
    rest = np.compress(np.repeat(kept, array.shape[axis] // len(kept)), array, axis)
    pruned = add_constant(graph, f"{value.name}.pruned", np.ascontiguousarray(rest))
    node.replace_input_with(node.inputs.index(value), pruned)


def _narrow(value: ir.Value, kept: NDArray[np.bool_]) -> None:
    """The width that is left of a value."""
    if value.shape is not None and isinstance(value.shape[-1], int):
        value.shape = ir.Shape([*value.shape[:-1], value.shape[-1] // len(kept) * int(kept.sum())])
