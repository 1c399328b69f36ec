"""Heavy products over the tokens of a ragged batch that are really there."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from coda_compile.export import TAGS
from coda_compile.passes.declining import Declining
from coda_compile.passes.token_wise import has_tokens, token_inputs
from coda_compile.passes.values import add_constant
from coda_ops import DOMAIN, RUNTIME_DOMAIN
from coda_ops.catalogue import OPERATORS
from coda_targets.routing import LAYER_TAG

_BOOL = int(ir.DataType.BOOL)
_LINEAR = {("", "MatMul"), *((each.domain, each.name) for each in OPERATORS if each.weights)}
_ATTENTION = {
    (RUNTIME_DOMAIN, "MultiHeadAttention"),
    (RUNTIME_DOMAIN, "Attention"),
    *((each.domain, each.name) for each in OPERATORS if each.attention),
}


class PackRows(Declining):
    """Between attention, which is of one text at a time, products run over Σ k_i rows instead of batch · max k.

    In a routed layer the rows are the slots in use, in a dense one the valid tokens and the first, which heads read
    even where it is padding. What treats tokens one by one works on [rows, width]; attention and what reads the layer
    get them unpacked. It pays for batches of texts of different lengths. For a single text it only adds copies, so a
    target's own lowering does without.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Pack every layer."""
        self.declined.clear()
        graph = model.graph
        modified = False
        if any(node.op_type == "PackTokens" for node in graph):
            return ir.passes.PassResult(model, False)
        valid, kept = _valid(graph), None
        for layer in sorted({node.metadata_props[LAYER_TAG] for node in graph if LAYER_TAG in node.metadata_props}):
            nodes = [node for node in graph if node.metadata_props.get(LAYER_TAG) == layer]
            sources = _routed(nodes)
            if sources is None and valid is not None:
                kept = kept or _and_first(graph, valid)
                sources = dict.fromkeys(_read_from_outside(nodes), kept)
            if not sources:
                self.declined["nothing says which tokens are valid"] += 1
            elif _pack(graph, nodes, sources):
                modified = True
            else:
                self.declined["no product treats its tokens one by one"] += 1
        _cancel(graph)
        return ir.passes.PassResult(model, modified)


def _valid(graph: ir.Graph) -> ir.Value | None:
    """The attention mask as booleans."""
    for node in graph:
        source = node.inputs[0] if (node.domain, node.op_type) == ("", "Cast") else None
        if source is None or source not in graph.inputs or source.name != "attention_mask":
            continue
        if node.attributes.get_int("to") == _BOOL:
            return node.outputs[0]
    return None


def _and_first(graph: ir.Graph, valid: ir.Value) -> ir.Value:
    """The valid tokens and the first of every text. [batch, tokens]"""
    producer = valid.producer()
    assert producer is not None
    numbers = {"begin": [1], "end": [np.iinfo(np.int64).max], "axis": [1], "pads": [0, 1, 0, 0]}
    constants = {
        name: add_constant(graph, f"coda.first.{name}", np.array(value, np.int64)) for name, value in numbers.items()
    }
    true = add_constant(graph, "coda.first.true", np.array(True))
    rest = ir.node("Slice", [valid, *(constants[name] for name in ("begin", "end", "axis"))])
    whole = ir.node("Pad", [rest.outputs[0], constants["pads"], true])
    for node in (rest, whole):
        node.metadata_props.update(
            {key: producer.metadata_props[key] for key in TAGS if key in producer.metadata_props}
        )
        node.outputs[0].type = valid.type
    whole.outputs[0].shape = valid.shape
    graph.insert_after(producer, [rest, whole])
    return whole.outputs[0]


def _routed(nodes: list[ir.Node]) -> dict[ir.Value, ir.Value] | None:
    """Taken tokens of a routed layer with the slots in use; ``None`` for a dense one."""
    taken = {}
    for node in nodes:
        if (node.domain, node.op_type) == (DOMAIN, "TakeTokens"):
            indices = node.inputs[1]
            route = None if indices is None else indices.producer()
            if route is not None and route.op_type == "Route":
                taken[node.outputs[0]] = route.outputs[2]
    return taken or None


def _read_from_outside(nodes: list[ir.Node]) -> Iterator[ir.Value]:
    """Tokens that a layer reads and does not compute."""
    own = set(nodes)
    for node in nodes:
        yield from (v for v in node.inputs if v is not None and has_tokens(v) and v.producer() not in own)


def _pack(graph: ir.Graph, nodes: list[ir.Node], sources: dict[ir.Value, ir.Value]) -> bool:
    """Pack one layer; whether there was anything to gain."""
    used = dict(sources)  # of every value that there will be rows of
    packing: list[ir.Node] = []
    for node in nodes:
        inputs = token_inputs(node)
        masks = {used.get(value) for i in inputs if (value := node.inputs[i]) is not None}
        if inputs and len(masks) == 1 and (mask := masks.pop()) is not None:
            packing.append(node)
            used[node.outputs[0]] = mask
        elif _is_attention(node) and node.inputs[0] in used:
            used[node.outputs[0]] = used[node.inputs[0]]
    if not any((node.domain, node.op_type) in _LINEAR for node in packing):
        return False
    rows: dict[ir.Value, ir.Value] = {}
    for node in packing:
        for i in token_inputs(node):
            value = node.inputs[i]
            assert value is not None
            if value.producer() not in packing:
                if value not in rows:
                    rows[value] = _insert(graph, "PackTokens", value, used[value], before=node)
                node.replace_input_with(i, rows[value])
    for node in packing:
        output = node.outputs[0]
        assert output.shape is not None
        others = [(user, i) for user, i in output.uses() if user not in packing]
        shape, output.shape = output.shape, ir.Shape([None, output.shape[2]])
        if node.op_type == "LayerNormalization":
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
        if others or output.is_graph_output():
            unpacked = _insert(graph, "UnpackTokens", output, used[output], after=node)
            unpacked.shape = shape
            for user, i in others:
                user.replace_input_with(i, unpacked)
            _take_over(graph, output, unpacked)
    return True


def _is_attention(node: ir.Node) -> bool:
    return (node.domain, node.op_type) in _ATTENTION


def _insert(
    graph: ir.Graph,
    op_type: str,
    value: ir.Value,
    used: ir.Value,
    *,
    before: ir.Node | None = None,
    after: ir.Node | None = None,
) -> ir.Value:
    """What a new node makes of a value, placed and tagged like another node."""
    node = ir.node(op_type, [value, used], domain=DOMAIN)
    place = before or after
    assert place is not None
    node.metadata_props.update({key: place.metadata_props[key] for key in TAGS if key in place.metadata_props})
    node.outputs[0].type = value.type
    if value.shape is not None:
        node.outputs[0].shape = ir.Shape([None, value.shape[-1]])
    graph.insert_before(place, node) if before else graph.insert_after(place, node)
    return node.outputs[0]


def _take_over(graph: ir.Graph, output: ir.Value, unpacked: ir.Value) -> None:
    """Have the unpacked tokens be the graph's output where the rows' value was, under its name."""
    for i, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[i] = unpacked
            unpacked.name, output.name = output.name, f"{output.name}_rows"


def _cancel(graph: ir.Graph) -> None:
    """Rows that one layer unpacks for the next to pack again stay packed."""
    for node in list(graph):
        source = node.inputs[0].producer() if node.op_type == "PackTokens" and node.inputs[0] is not None else None
        if source is not None and source.op_type == "UnpackTokens" and source.inputs[1] is node.inputs[1]:
            rows = source.inputs[0]
            assert rows is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], rows)
            graph.remove(node, safe=True)
