"""What tokens have become less what they were, put back in one operator."""

import onnx_ir as ir

from coda_compile.passes.declining import Declining
from coda_compile.passes.values import made_by
from coda_ops import DOMAIN


class FusePuts(Declining):
    """Sub → ``ai.coda::PutTokens`` becomes ``PutDifference``: a walk over the routed tokens less.

    Post-norm layers update tokens that way. The function body is what was there before.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse what matches."""
        return self.fuse_each(model, DOMAIN, "PutTokens", _fuse)


def _fuse(graph: ir.Graph, put: ir.Node) -> str | None:
    """Fuse one; returns why not, or ``None``."""
    *where, update = put.inputs
    difference = made_by(update, "Sub")
    if difference is None:
        return "its update is no difference, or others read it too"
    now, before = difference.inputs
    if now is None or before is None or now.shape is None or now.shape != before.shape:
        return "the two sides of the difference have different shapes"
    fused = ir.node("PutDifference", [*where, now, before], domain=DOMAIN)
    fused.metadata_props.update(put.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, put, [put, difference], [fused], put.outputs, fused.outputs)
    return None
