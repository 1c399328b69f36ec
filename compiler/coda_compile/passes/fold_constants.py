"""Fold what a graph computes from constants alone."""

import onnx_ir as ir
from onnxscript import optimizer

_INPUT_LIMIT = 1 << 13  # numbers of one input of an operator that is folded
_OUTPUT_LIMIT = 1 << 19  # and of its result


class FoldConstants(ir.passes.InPlacePass):
    """onnxscript's constant folding with shape inference, where neither inputs nor results are large."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold all of them."""
        return optimizer.fold_constants(
            model, onnx_shape_inference=True, input_size_limit=_INPUT_LIMIT, output_size_limit=_OUTPUT_LIMIT
        )
