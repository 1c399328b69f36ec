"""Bottlenecks with the residual sum behind them in one operator."""

from dataclasses import dataclass

import onnx_ir as ir

from coda_compile.passes.declining import Declining
from coda_compile.passes.values import both_ways, made_by
from coda_ops import DOMAIN
from coda_targets.routing import ROLE_TAG


@dataclass(frozen=True)
class _Bottleneck:
    """What computes an adapter.

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


class FuseAdapters(Declining):
    """down, ReLU or swish, up and a residual sum → ``AddAdapter``, ``AddSwishAdapter`` or ``Int8AddAdapter``.

    Adapters beside layers, and serial ones inside them, in float32 as in eight bits. A native kernel takes a few tokens
    through all of it while they are in the first cache; the function body is what was there before.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse what matches."""
        self.declined.clear()
        modified = False
        for node in list(model.graph):
            if (node.domain, node.op_type) == ("", "Add"):
                found = _found(node)
                if found is None:
                    continue
                residual, bottleneck = found
                reason = _misfit(residual, bottleneck)
                if reason is None:
                    _fuse(model.graph, node, residual, bottleneck)
                    modified = True
                else:
                    self.declined[reason] += 1
        return ir.passes.PassResult(model, modified)


def _found(add: ir.Node) -> tuple[ir.Value | None, _Bottleneck] | None:
    """The two sides of a sum with an adapter."""
    for residual, made in both_ways(add):
        bottleneck = _of_operator(made) or _in_eight_bits(made) or _in_products(made)
        if bottleneck is not None:
            return residual, bottleneck
    return None


def _misfit(residual: ir.Value | None, bottleneck: _Bottleneck) -> str | None:
    """Why the two cannot be one, or ``None``."""
    x = bottleneck.x
    if residual is None or x is None or residual.shape is None or residual.shape != x.shape:
        return "what it is added to has another shape than what it reads"
    if bottleneck.nodes[-1].metadata_props.get(ROLE_TAG) != "adapter" and not _narrows(bottleneck.weights[0]):
        return "its middle is as wide as what it reads, or wider, as of a feed-forward"
    return None


def _narrows(down: ir.Value | None) -> bool:
    shape = None if down is None else down.shape
    if shape is None or len(shape) != 2:
        return False
    width, middle = shape
    return isinstance(width, int) and isinstance(middle, int) and middle < width


def _fuse(graph: ir.Graph, add: ir.Node, residual: ir.Value | None, bottleneck: _Bottleneck) -> None:
    inputs = [residual, bottleneck.x, *bottleneck.weights]
    fused = ir.node(bottleneck.operator, inputs, num_outputs=bottleneck.outputs, domain=DOMAIN)
    fused.metadata_props.update(bottleneck.nodes[0].metadata_props)
    ir.convenience.replace_nodes_and_values(
        graph, add, [add, *bottleneck.nodes], [fused], add.outputs, fused.outputs[:1]
    )


def _of_operator(value: ir.Value | None) -> _Bottleneck | None:
    adapter = made_by(value, "Adapter", domain=DOMAIN)
    if adapter is None:
        return None
    x, *weights = adapter.inputs
    return _Bottleneck("AddAdapter", x, tuple(weights), (adapter,))


def _in_eight_bits(value: ir.Value | None) -> _Bottleneck | None:
    up = made_by(value, "Int8Linear", domain=DOMAIN)
    relu = None if up is None else made_by(up.inputs[0], "Relu")
    down = None if relu is None else made_by(relu.inputs[0], "Int8Linear", domain=DOMAIN)
    if up is None or relu is None or down is None:
        return None
    x, *weights = down.inputs
    return _Bottleneck("Int8AddAdapter", x, (*weights, *up.inputs[1:]), (up, relu, down), 2)


def _in_products(value: ir.Value | None) -> _Bottleneck | None:
    """Of standard operators, as linear layers are exported."""
    up = _linear(value)
    if up is None:
        return None
    hidden, up_weight, up_bias, up_nodes = up
    activation = _activation(hidden)
    down = None if activation is None else _linear(activation.shifted, activation.readers)
    if activation is None or down is None:
        return None
    x, down_weight, down_bias, down_nodes = down
    weights = (down_weight, down_bias, up_weight, up_bias)
    return _Bottleneck(activation.operator, x, weights, (*up_nodes, *activation.nodes, *down_nodes))


@dataclass(frozen=True)
class _Activation:
    """What it is applied to, by how many readers, and the operator that has it."""

    operator: str
    shifted: ir.Value | None
    readers: int
    nodes: tuple[ir.Node, ...]


def _activation(hidden: ir.Value | None) -> _Activation | None:
    relu = made_by(hidden, "Relu")
    if relu is not None:
        return _Activation("AddAdapter", relu.inputs[0], 1, (relu,))
    product = made_by(hidden, "Mul")
    for value, share in both_ways(product) if product is not None else ():
        sigmoid = made_by(share, "Sigmoid")
        if product is not None and sigmoid is not None and sigmoid.inputs[0] is value:
            return _Activation("AddSwishAdapter", value, 2, (product, sigmoid))
    return None


def _linear(
    value: ir.Value | None, readers: int = 1
) -> tuple[ir.Value | None, ir.Value, ir.Value, tuple[ir.Node, ...]] | None:
    """x, constant weight and bias, and the nodes of a linear layer."""
    add = made_by(value, "Add", readers=readers)
    if add is None:
        return None
    for product, bias in both_ways(add):
        matmul = made_by(product, "MatMul")
        if matmul is None or bias is None:
            continue
        x, weight = matmul.inputs
        if weight is not None and _rank(weight) == 2 and _rank(bias) == 1:
            return x, weight, bias, (add, matmul)
    return None


def _rank(value: ir.Value) -> int | None:
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else len(tensor.shape)
