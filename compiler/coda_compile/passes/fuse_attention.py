"""Fuse attention scores, mask, softmax and weighted sum of all heads."""

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter.ort_fusions.mha import fuse_mha2
from onnxscript.rewriter.ort_fusions.sdpa import fuse_sdpa
from onnxscript.rewriter.ort_fusions.sdpa_via_mha import replace_sdpa_by_mha

from coda_compile.passes.fusion import Fusion
from coda_compile.passes.outcome import Declined, Fused, Outcome
from coda_ops import RUNTIME_DOMAIN

_FUSION_DOMAIN = "ai.onnxruntime._fusion"  # of the operator that onnxscript's rules meet at


class FuseAttention(Fusion):
    """Attention as torch's exporter decomposes it → ``com.microsoft.MultiHeadAttention``.

    The operator takes [batch, tokens, width] and splits the heads itself, so that no transpose is left around it. An
    attention that is written in another way stays as it is.
    """

    def attempts(self, model: ir.Model) -> Iterator[Outcome]:
        """Fuse all of them at once, by onnxscript's rules; a model without attention is not touched."""
        if not _softmaxes(model):
            return
        fused = fuse_sdpa(model, apply_shape_inference=True)
        if fused:
            common.RemoveUnusedNodesPass()(model)  # readers without a use of their own would stand in the way
            fuse_mha2(model)
            replace_sdpa_by_mha(model)
            model.opset_imports.pop(_FUSION_DOMAIN, None)
            model.opset_imports[RUNTIME_DOMAIN] = 1
        yield from (Fused() for _ in range(fused))
        for node in _softmaxes(model):
            yield Declined("a softmax is not between two matrix products, as attention's is", node)


def _softmaxes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Softmax"]
