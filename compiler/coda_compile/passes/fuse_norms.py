"""Fuse a residual sum and the layer norm behind it."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from coda_compile.passes.fusion import NodeFusion
from coda_compile.passes.outcome import Declined, Fused, Outcome
from coda_compile.passes.values import add_constant, either_order, is_bias, producer, replace
from coda_ops import DOMAIN


@dataclass(frozen=True)
class _Biased:
    """x + bias, and the node that computes it."""

    x: ir.Value
    bias: ir.Value
    node: ir.Node


class FuseNorms(NodeFusion):
    """Add → LayerNormalization, and the bias that was added to either side before → ``ai.coda::AddNorm``.

    A native kernel walks over each row while it is in the first cache. Its function body is what was there before, so
    that without the kernel runtimes fuse what they always did.
    """

    anchor = ("", "LayerNormalization")

    def attempt(self, graph: ir.Graph, node: ir.Node) -> Outcome:
        """Fuse one norm with its sum."""
        add = producer(node.inputs[0], "Add")
        if add is None:
            return Declined("its input is no sum that it alone reads", node.inputs[0])
        a, b = add.inputs
        if a is None or b is None or a.shape is None or a.shape != b.shape or len(a.shape) < 2:
            return Declined("the two sides of the sum have different shapes", add)
        width = a.shape[-1]
        if (declined := check_norm(node, len(a.shape))) is not None:
            return declined
        if not isinstance(width, int):
            return Declined("the width of the sum is not known", a)
        if _biased(b) is None:
            a, b = b, a
        biased = _biased(b)
        if biased is None:
            no_bias = add_constant(graph, f"{node.name}.shift", np.zeros(width, np.float32))
            old, summands = [node, add], [a, b, no_bias]
        else:
            old, summands = [node, add, biased.node], [a, biased.x, biased.bias]
        epsilon = {"epsilon": node.attributes.get_float("epsilon", 1e-5)}
        replace(graph, node, old, [ir.node("AddNorm", [*summands, *node.inputs[1:3]], epsilon, domain=DOMAIN)])
        return Fused()


def check_norm(norm: ir.Node, rank: int) -> Declined | None:
    """Why a LayerNormalization of so many axes is none of a transformer's; ``None`` if it is one."""
    if len(norm.inputs) < 3 or None in norm.inputs[1:3]:
        return Declined("it has no bias", norm)
    if norm.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return Declined("it normalises more than the last axis", norm)
    for output in norm.outputs[1:]:
        if output.uses() or output.is_graph_output():
            return Declined("its mean or its deviation is read too", output)
    return None


def _biased(value: ir.Value) -> _Biased | None:
    """The sum with a constant vector that makes a value, if that is how it is made."""
    add = producer(value, "Add")
    if add is None or value.shape is None:
        return None
    for x, bias in either_order(add):
        if x is not None and bias is not None and x.shape == value.shape and is_bias(bias, value):
            return _Biased(x, bias, add)
    return None
