"""Fuse attention scores, mask, softmax and weighted sum of all heads."""

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter import pattern
from onnxscript.rewriter.ort_fusions.mha import fuse_mha2
from onnxscript.rewriter.ort_fusions.sdpa import SDPA
from onnxscript.rewriter.ort_fusions.sdpa_via_mha import replace_sdpa_by_mha

from coda_compile.passes.fusion import Fusion
from coda_compile.passes.outcome import Declined, Fused, Outcome
from coda_ops import RUNTIME_DOMAIN

_FUSION_DOMAIN = "ai.onnxruntime._fusion"  # of the operator that onnxscript's rules meet at


class _Attention(SDPA):
    """onnxscript's rule, where the graph says how many heads there are, as the runtime's operator has to."""

    def check(self, *context: Any, **matched: Any) -> Any:
        """See ``RewriteRuleClassBase``."""
        query = matched["query"]
        if query.shape is None or len(query.shape) != 4 or not isinstance(query.shape[1], int):
            return pattern.MatchResult().fail("the number of heads is not known", query)
        return super().check(*context, **matched)


_RULES = pattern.RewriteRuleSet([_Attention.rule()])  # type: ignore[no-untyped-call]


class FuseAttention(Fusion):
    """Attention as torch's exporter decomposes it → ``com.microsoft.MultiHeadAttention``.

    The operator takes [batch, tokens, width] and splits the heads itself, so that no transpose is left around it. An
    attention that is written in another way stays as it is.
    """

    def attempts(self, model: ir.Model) -> Iterator[Outcome]:
        """Fuse all of them at once, by onnxscript's rules; a model without attention is not touched."""
        if not _softmaxes(model):
            return
        common.ShapeInferencePass()(model)  # or two sizes that are not known would count as one
        fused = _RULES.apply_to_model(model)
        if fused:
            common.ShapeInferencePass()(model)
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
