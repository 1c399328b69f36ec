"""Compute once, for all layers of the same r, which slots are in use."""

import onnx_ir as ir

from coda_ops import DOMAIN


class ShareSlotMasks(ir.passes.InPlacePass):
    """``used`` of a Route → that of the first Route with the same mask and reduction.

    How many slots of a sequence are in use follows from its mask alone, but no runtime can know: what attention makes
    of it is then computed once for all of those layers.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Share wherever it can be."""
        first, modified = dict[tuple[ir.Value | None, int, int], ir.Value](), False
        for node in model.graph:
            if (node.domain, node.op_type) != (DOMAIN, "Route"):
                continue
            ratio = node.attributes["numerator"].as_int(), node.attributes["denominator"].as_int()
            used = node.outputs[2]
            kept = first.setdefault((node.inputs[1], *ratio), used)
            if kept is not used and used.uses():
                ir.convenience.replace_all_uses_with(used, kept)
                modified = True
        return ir.passes.PassResult(model, modified)
