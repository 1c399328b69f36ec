"""With first-token pooling, compute one query in the last layer: the output reads no other."""

import onnx_ir as ir

from coda_compile.passes.fusion import NodeFusion
from coda_compile.passes.outcome import Declined, Fused, NotHere, Outcome
from coda_compile.passes.token_wise import has_tokens, token_inputs
from coda_compile.passes.values import ATTENTION_BIAS, attention_bias, constant
from coda_ops import RUNTIME_DOMAIN


class TrimToReadout(NodeFusion):
    """Follow a read of the first token up to the attention that its state comes from, and compute that token alone.

    Exact: every operator on the way treats each token by itself, and attention each query.
    """

    anchor = ("", "Gather")

    def attempt(self, graph: ir.Graph, node: ir.Node) -> Outcome:
        """Trim what one read of the first token needs."""
        return _trim(graph, node) if _reads_first_token(node) else NotHere()


def _reads_first_token(node: ir.Node) -> bool:
    """Whether a node takes token 0 of [batch, tokens, width], of more than one token as far as is known."""
    index = constant(node.inputs[1])
    if node.attributes.get_int("axis", 0) != 1 or index is None or index.size != 1 or int(index.numpy().item()) != 0:
        return False
    return has_tokens(node.inputs[0])


def _trim(graph: ir.Graph, read: ir.Node) -> Outcome:
    trimmed: list[ir.Node] = []  # from the read upwards
    edges = {(read, 0)}
    for node in reversed(list(graph)):
        if len(node.outputs) != 1 or not has_tokens(node.outputs[0]) or node.outputs[0].is_graph_output():
            continue
        uses = node.outputs[0].uses()
        if uses and all((user, i) in edges or _sizes_a_bias(user, edges) for user, i in uses):
            inputs = _token_inputs(node)
            if inputs:
                trimmed.append(node)
                edges |= {(node, i) for i in inputs}
    if not any(node.op_type == "MultiHeadAttention" for node in trimmed):
        return Declined("no attention lies between the first token and what others read too", read.inputs[0])
    for node in reversed(trimmed):
        for i in _token_inputs(node):
            value = node.inputs[i]
            if value is not None and value.producer() not in trimmed:
                node.replace_input_with(i, _first(graph, value, axis=1, before=node))
        bias = attention_bias(node) if node.op_type == "MultiHeadAttention" else None
        if bias is not None and bias.shape is not None and bias.shape[2] != 1 and not _expanded(bias, edges):
            node.replace_input_with(ATTENTION_BIAS, _first(graph, bias, axis=2, before=node))
    for node in trimmed:
        output = node.outputs[0]
        assert output.shape is not None
        output.shape = ir.Shape([output.shape[0], 1, output.shape[2]])
    return Fused()


def _token_inputs(node: ir.Node) -> tuple[int, ...]:
    """Inputs of which fewer tokens give fewer results: attention's queries, and slices of other axes, as well."""
    if (node.domain, node.op_type) == (RUNTIME_DOMAIN, "MultiHeadAttention"):
        return (0,)
    if (node.domain, node.op_type) == ("", "Slice"):
        axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
        return (0,) if axes is not None and 1 not in axes.numpy() and -2 not in axes.numpy() else ()
    return token_inputs(node)


def _sizes_a_bias(node: ir.Node, edges: set[tuple[ir.Node, int]]) -> bool:
    """Whether a Shape asks for the number of queries only to expand a bias to it, which one query needs not."""
    if node.op_type != "Shape" or (node.attributes.get_int("start", 0), node.attributes.get_int("end", -1)) != (1, 2):
        return False
    for op_type in ("Concat", "Expand"):
        users = [user for user, _ in node.outputs[0].uses()]
        if len(users) != 1 or users[0].op_type != op_type:
            return False
        node = users[0]
    return all(i == ATTENTION_BIAS and (user, 0) in edges for user, i in node.outputs[0].uses())


def _expanded(bias: ir.Value, edges: set[tuple[ir.Node, int]]) -> bool:
    """Whether a bias is expanded to the number of queries by their own count, and so follows it."""
    expand = bias.producer()
    if expand is None or expand.op_type != "Expand" or expand.inputs[1] is None:
        return False
    concat = expand.inputs[1].producer()
    sizes = [] if concat is None else [v.producer() for v in concat.inputs if v is not None]
    return any(node is not None and node.op_type == "Shape" and _sizes_a_bias(node, edges) for node in sizes)


def _first(graph: ir.Graph, value: ir.Value, *, axis: int, before: ir.Node) -> ir.Value:
    """A new value: the first along an axis, which is kept."""
    bounds = [ir.node("Constant", [], {"value": ir.tensor([number], ir.DataType.INT64)}) for number in (0, 1, axis)]
    for bound in bounds:
        bound.outputs[0].shape, bound.outputs[0].type = ir.Shape([1]), ir.TensorType(ir.DataType.INT64)
    cut = ir.node("Slice", [value, *(bound.outputs[0] for bound in bounds)])
    assert value.shape is not None
    cut.outputs[0].shape = ir.Shape([1 if i == axis else size for i, size in enumerate(value.shape)])
    cut.outputs[0].type = value.type
    for node in (*bounds, cut):
        node.metadata_props.update(before.metadata_props)
    graph.insert_before(before, [*bounds, cut])
    return cut.outputs[0]
