"""Scores, mask, softmax and mixing of every head in one operator."""

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter.ort_fusions.mha import fuse_mha2
from onnxscript.rewriter.ort_fusions.sdpa import fuse_sdpa
from onnxscript.rewriter.ort_fusions.sdpa_via_mha import replace_sdpa_by_mha

from coda_compile.passes.declining import Declining
from coda_ops import RUNTIME_DOMAIN

_FUSION_DOMAIN = "ai.onnxruntime._fusion"  # of the operator that onnxscript's fusers meet at


class FuseAttention(Declining):
    """Attention as torch's exporter decomposes it → ``com.microsoft.MultiHeadAttention``.

    The operator takes [batch, tokens, width] and splits the heads itself, so that no transpose is left around it. An
    attention that is written in another way stays as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse what matches; a model without attention is not touched."""
        self.declined.clear()
        if not any(node.op_type == "Softmax" for node in model.graph):
            return ir.passes.PassResult(model, False)
        fused = fuse_sdpa(model, apply_shape_inference=True)
        if fused:
            common.RemoveUnusedNodesPass()(model)  # readers without a use of their own would stand in the way
            fuse_mha2(model)
            replace_sdpa_by_mha(model)
            model.opset_imports.pop(_FUSION_DOMAIN, None)
            model.opset_imports[RUNTIME_DOMAIN] = 1
        if left := sum(node.op_type == "Softmax" for node in model.graph):
            self.declined["a Softmax that is not between two products, as attention's is"] = left
        return ir.passes.PassResult(model, bool(fused))
