"""Fuse a bottleneck, or a map of low rank, and the residual sum behind it."""

from dataclasses import dataclass

import onnx_ir as ir

from coda_compile.passes.fusion import NodeFusion
from coda_compile.passes.linear import linear_layer
from coda_compile.passes.outcome import Declined, Fused, NotHere, Outcome
from coda_compile.passes.values import constant, either_order, producer
from coda_ops import DOMAIN
from coda_targets.routing import ROLE_TAG

_BESIDE = ("adapter", "stand_in")  # roles of what may be as wide as the layer that it stands beside


@dataclass(frozen=True)
class _Bottleneck:
    """What computes an adapter or a stand-in.

    Attributes:
        operator: the one that takes its place.
        x: what it reads.
        weights: its other inputs in the new operator's order.
        nodes: the last one first.
        outputs: of the new operator, the sum before others.
    """

    operator: str
    x: ir.Value | None
    weights: tuple[ir.Value | None, ...]
    nodes: tuple[ir.Node, ...]
    outputs: int = 1


class FuseAdapters(NodeFusion):
    """down, ReLU or swish, up and a residual sum → ``AddAdapter``, ``AddSwishAdapter`` or ``Int8AddAdapter``; with
    nothing between down and up → ``AddLowRank`` or ``Int8AddLowRank``.

    Adapters and stand-ins beside layers, and serial adapters inside them, in float32 as in int8. A native kernel takes
    a few tokens through all of it while they are in the first cache; the function body is what was there before.
    """

    anchor = ("", "Add")

    def attempt(self, graph: ir.Graph, node: ir.Node) -> Outcome:
        """Fuse one residual sum with the adapter that it adds."""
        found = _find(node)
        if found is None:
            return NotHere()
        residual, bottleneck = found
        x, down = bottleneck.x, bottleneck.weights[0]
        if residual is None or x is None or residual.shape is None or residual.shape != x.shape:
            return Declined("its residual has another shape than what the adapter reads", residual)
        if bottleneck.nodes[-1].metadata_props.get(ROLE_TAG) not in _BESIDE and not _narrows(down):
            return Declined("its bottleneck is as wide as what it reads, or wider, as in a feed-forward", down)
        inputs = [residual, x, *bottleneck.weights]
        fused = ir.node(bottleneck.operator, inputs, num_outputs=bottleneck.outputs, domain=DOMAIN)
        fused.metadata_props.update(bottleneck.nodes[0].metadata_props)
        old = [node, *bottleneck.nodes]
        ir.convenience.replace_nodes_and_values(graph, node, old, [fused], node.outputs, fused.outputs[:1])
        return Fused()


def _find(add: ir.Node) -> tuple[ir.Value | None, _Bottleneck] | None:
    """The residual and the adapter that a sum adds to it."""
    for residual, update in either_order(add):
        bottleneck = _of_operator(update) or _of_int8(update) or _of_linears(update) or _of_low_rank(update)
        if bottleneck is not None:
            return residual, bottleneck
    return None


def _narrows(down: ir.Value | None) -> bool:
    shape = None if down is None else down.shape
    if shape is None or len(shape) != 2:
        return False
    width, middle = shape
    return isinstance(width, int) and isinstance(middle, int) and middle < width


def _of_operator(value: ir.Value | None) -> _Bottleneck | None:
    adapter = producer(value, "Adapter", domain=DOMAIN)
    if adapter is None:
        return None
    x, *weights = adapter.inputs
    return _Bottleneck("AddAdapter", x, tuple(weights), (adapter,))


def _of_int8(value: ir.Value | None) -> _Bottleneck | None:
    up = producer(value, "Int8Linear", domain=DOMAIN)
    relu = None if up is None else producer(up.inputs[0], "Relu")
    hidden = up if relu is None else relu
    down = None if hidden is None else producer(hidden.inputs[0], "Int8Linear", domain=DOMAIN)
    if up is None or down is None:
        return None
    x, *weights = down.inputs
    operator, nodes = ("Int8AddLowRank", (up, down)) if relu is None else ("Int8AddAdapter", (up, relu, down))
    return _Bottleneck(operator, x, (*weights, *up.inputs[1:]), nodes, 2)


def _of_linears(value: ir.Value | None) -> _Bottleneck | None:
    """Of standard operators, as linear layers are exported."""
    up = linear_layer(value)
    if up is None:
        return None
    activation = _activation(up.x)
    down = None if activation is None else linear_layer(activation.x, uses=activation.uses)
    if activation is None or down is None:
        return None
    weights = (down.weight, down.bias, up.weight, up.bias)
    nodes = (up.add, up.matmul, *activation.nodes, down.add, down.matmul)
    return _Bottleneck(activation.operator, down.x, weights, nodes)


def _of_low_rank(value: ir.Value | None) -> _Bottleneck | None:
    """Two products and one bias."""
    up = linear_layer(value)
    down = None if up is None else producer(up.x, "MatMul")
    if up is None or down is None or constant(down.inputs[1], 2) is None:
        return None
    x, weight = down.inputs
    return _Bottleneck("AddLowRank", x, (weight, up.weight, up.bias), (up.add, up.matmul, down))


@dataclass(frozen=True)
class _Activation:
    """What it is applied to, how often that is used, and the operator that has it."""

    operator: str
    x: ir.Value | None
    uses: int
    nodes: tuple[ir.Node, ...]


def _activation(hidden: ir.Value | None) -> _Activation | None:
    relu = producer(hidden, "Relu")
    if relu is not None:
        return _Activation("AddAdapter", relu.inputs[0], 1, (relu,))
    product = producer(hidden, "Mul")
    for value, gate in either_order(product) if product is not None else ():
        sigmoid = producer(gate, "Sigmoid")
        if product is not None and sigmoid is not None and sigmoid.inputs[0] is value:
            return _Activation("AddSwishAdapter", value, 2, (product, sigmoid))
    return None
