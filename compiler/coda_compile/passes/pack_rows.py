"""Run linear layers on the valid tokens of a ragged batch alone."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from coda_compile.export import TAGS
from coda_compile.passes.fusion import Fusion
from coda_compile.passes.outcome import Declined, Fused, NotHere, Outcome
from coda_compile.passes.token_wise import has_tokens, token_inputs
from coda_compile.passes.values import add_constant
from coda_ops import DOMAIN, RUNTIME_DOMAIN
from coda_ops.catalogue import OPERATORS
from coda_targets.routing import LAYER_TAG

_BOOL = int(ir.DataType.BOOL)
_LINEARS = {("", "MatMul"), *((each.domain, each.name) for each in OPERATORS if each.weights)}
_ATTENTION = {
    (RUNTIME_DOMAIN, "MultiHeadAttention"),
    (RUNTIME_DOMAIN, "Attention"),
    *((each.domain, each.name) for each in OPERATORS if each.attention),
}


class PackRows(Fusion):
    """Between attention, which is of one sequence at a time, linear layers run over Σ k_i rows, not batch · max k.

    In a routed layer the rows are the slots in use, in a dense one the valid tokens and the first, which heads read
    even where it is padding. What treats tokens one by one works on [rows, width]; attention and what reads the layer
    get them unpacked. It pays for batches of sequences of different lengths. For a single one it only adds copies, so
    no target's own passes have it.
    """

    def attempts(self, model: ir.Model) -> Iterator[Outcome]:
        """Pack layer by layer."""
        graph = model.graph
        if any(node.op_type == "PackTokens" for node in graph):
            yield NotHere()
            return
        valid, rows = _valid(graph), None
        for layer in sorted({node.metadata_props[LAYER_TAG] for node in graph if LAYER_TAG in node.metadata_props}):
            nodes = [node for node in graph if node.metadata_props.get(LAYER_TAG) == layer]
            masks = _routed(nodes) or (dict.fromkeys(_read_from_outside(nodes), valid) if valid is not None else {})
            if not masks:
                yield Declined("nothing says which tokens are valid", nodes[0])
                continue
            packing = _packing(nodes, masks)
            if not any((node.domain, node.op_type) in _LINEARS for node in packing):
                yield Declined("no linear layer treats its tokens one by one", nodes[0])
                continue
            if valid in masks.values():
                assert valid is not None
                rows = rows or _and_first(graph, valid)
                masks = {value: rows if mask is valid else mask for value, mask in masks.items()}
            _pack(graph, packing, masks)
            yield Fused()
        _cancel(graph)


def _valid(graph: ir.Graph) -> ir.Value | None:
    """The attention mask as booleans: the one input of the graph that is cast to them. [batch, tokens]"""
    masks: dict[ir.Value, ir.Value] = {}
    for node in graph:
        source = node.inputs[0] if (node.domain, node.op_type) == ("", "Cast") else None
        if source is not None and source in graph.inputs and node.attributes.get_int("to") == _BOOL:
            masks.setdefault(source, node.outputs[0])
    return next(iter(masks.values())) if len(masks) == 1 else None


def _and_first(graph: ir.Graph, valid: ir.Value) -> ir.Value:
    """The valid tokens and the first of every sequence. [batch, tokens]"""
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


def _routed(nodes: list[ir.Node]) -> dict[ir.Value, ir.Value]:
    """Gathered tokens of a routed layer with the slots in use; none in a dense one."""
    taken = {}
    for node in nodes:
        if (node.domain, node.op_type) == (DOMAIN, "TakeTokens"):
            indices = node.inputs[1]
            route = None if indices is None else indices.producer()
            if route is not None and route.op_type == "Route":
                taken[node.outputs[0]] = route.outputs[2]
    return taken


def _read_from_outside(nodes: list[ir.Node]) -> Iterator[ir.Value]:
    """Tokens that a layer reads and does not compute."""
    own = set(nodes)
    for node in nodes:
        yield from (v for v in node.inputs if v is not None and has_tokens(v) and v.producer() not in own)


def _packing(nodes: list[ir.Node], masks: dict[ir.Value, ir.Value]) -> list[ir.Node]:
    """The nodes of a layer that can work on rows.

    Args:
        masks: which tokens of a value are valid, [batch, tokens], of what the layer starts from; gains those of every
            value that there will be rows of.
    """
    packing: list[ir.Node] = []
    for node in nodes:
        inputs = token_inputs(node)
        found = {masks.get(value) for i in inputs if (value := node.inputs[i]) is not None}
        if inputs and len(found) == 1 and (mask := found.pop()) is not None:
            packing.append(node)
            masks[node.outputs[0]] = mask
        elif _is_attention(node) and node.inputs[0] in masks:
            masks[node.outputs[0]] = masks[node.inputs[0]]
    return packing


def _pack(graph: ir.Graph, packing: list[ir.Node], masks: dict[ir.Value, ir.Value]) -> None:
    """Have the nodes of a layer work on rows, packed before the first of them and unpacked for all others."""
    rows: dict[ir.Value, ir.Value] = {}
    for node in packing:
        for i in token_inputs(node):
            value = node.inputs[i]
            assert value is not None
            if value.producer() not in packing:
                if value not in rows:
                    rows[value] = _insert(graph, "PackTokens", value, masks[value], before=node)
                node.replace_input_with(i, rows[value])
    for node in packing:
        output = node.outputs[0]
        assert output.shape is not None
        others = [(user, i) for user, i in output.uses() if user not in packing]
        shape, output.shape = output.shape, ir.Shape([None, output.shape[2]])
        if node.op_type == "LayerNormalization":
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
        if others or output.is_graph_output():
            unpacked = _insert(graph, "UnpackTokens", output, masks[output], after=node)
            unpacked.shape = shape
            for user, i in others:
                user.replace_input_with(i, unpacked)
            _take_over(graph, output, unpacked)


def _is_attention(node: ir.Node) -> bool:
    return (node.domain, node.op_type) in _ATTENTION


def _insert(
    graph: ir.Graph,
    op_type: str,
    value: ir.Value,
    mask: ir.Value,
    *,
    before: ir.Node | None = None,
    after: ir.Node | None = None,
) -> ir.Value:
    """What a new node makes of a value and the mask of its tokens, placed and tagged like another node."""
    node = ir.node(op_type, [value, mask], domain=DOMAIN)
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
