"""A residual sum with the layer norm behind it in one operator."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from coda_compile.passes.declining import Declining
from coda_compile.passes.values import add_constant, both_ways, made_by
from coda_ops import DOMAIN


@dataclass(frozen=True)
class _Moved:
    """y + shift, and the node that computes it."""

    y: ir.Value
    shift: ir.Value
    node: ir.Node


class FuseNorms(Declining):
    """Add → LayerNormalization, and the bias that was added to either side before → ``ai.coda::AddNorm``.

    A native kernel walks over each row while it is in the first cache. Its function body is what was there before, so
    that without the kernel runtimes fuse what they always did.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse what matches."""
        return self.fuse_each(model, "", "LayerNormalization", _fuse)


def _fuse(graph: ir.Graph, norm: ir.Node) -> str | None:
    """Fuse one; returns why not, or ``None``."""
    x, scale, bias = (*norm.inputs, None)[:3]
    add = made_by(x, "Add")
    if x is None or add is None:
        return "what it reads is no sum, or others read the sum too"
    a, b = add.inputs
    if a is None or b is None or a.shape is None or a.shape != b.shape or len(a.shape) < 2:
        return "the two sides of the sum have different shapes"
    width = a.shape[-1]
    if scale is None or bias is None or not isinstance(width, int) or not _last_axis(norm, len(a.shape)):
        return "it has no bias, or norms more than the last axis"
    if _moved(b) is None:
        a, b = b, a
    moved = _moved(b)
    if moved is None:
        y, shift = b, add_constant(graph, f"{norm.name}.shift", np.zeros(width, np.float32))
        old = [norm, add]
    else:
        y, shift = moved.y, moved.shift
        old = [norm, add, moved.node]
    fused = ir.node(
        "AddNorm",
        [a, y, shift, scale, bias],
        {"epsilon": norm.attributes.get_float("epsilon", 1e-5)},
        domain=DOMAIN,
    )
    fused.metadata_props.update(norm.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, norm, old, [fused], norm.outputs[:1], fused.outputs)
    return None


def _moved(value: ir.Value) -> _Moved | None:
    """The sum with a constant vector that makes a value, if that is how it is made."""
    add = made_by(value, "Add")
    if add is None:
        return None
    for y, shift in both_ways(add):
        tensor = None if shift is None else ir.convenience.get_const_tensor(shift)
        if y is None or shift is None or tensor is None or y.shape != value.shape or value.shape is None:
            continue
        if tuple(tensor.shape) == (value.shape[-1],):
            return _Moved(y, shift, add)
    return None


def _last_axis(norm: ir.Node, rank: int) -> bool:
    return norm.attributes.get_int("axis", -1) in (-1, rank - 1)
