"""Differences put back in one operator: on real graphs, and what is left alone."""

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from tests.compiler.passes.test_fuse_attention import BEFORE, outputs
from tests.conftest import tiny_coda

from coda_compile.export import export
from coda_compile.passes import run_passes
from coda_compile.passes.fuse_put_differences import FusePutDifferences
from coda_compile.verify.cases import Inputs, make_case
from coda_models import CodaConfig
from coda_targets.routing import LAYER_TAG


@pytest.mark.parametrize("attention", ["k_to_k", "k_to_all"])
def test_every_post_norm_layer_puts_a_difference(attention: str):
    model = tiny_coda("bert", CodaConfig(reduction=2, attention=attention))
    exported = ir.to_proto(export(model, opset=20))
    case = make_case(Inputs.of(model), 3, 11, ragged=True, seed=0)
    results = []
    for names in ((), ("fuse_put_differences",)):
        compiled = ir.from_proto(exported)
        reports = run_passes(compiled, (*BEFORE, *names, "remove_unused", "attach_functions"))
        results.append(outputs(compiled, case.inputs))
    for plain, fused in zip(*results, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=0, atol=1e-6)
    assert reports[len(BEFORE)].operators == {
        "Sub": -2,
        "ai.coda::PutTokens": -2,
        "ai.coda::PutDifference": 2,
    }
    assert [n.metadata_props[LAYER_TAG] for n in compiled.graph if n.op_type == "PutDifference"] == ["0", "1"]
    assert not FusePutDifferences()(compiled).modified


def test_pre_norm_layers_compute_updates_as_such():
    compiled = export(tiny_coda("roberta-prelayernorm", CodaConfig(reduction=2)), opset=20)
    step = FusePutDifferences()
    assert not step(compiled).modified
    assert step.declined == {"its update is no difference, or others read it too": 2}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("u = Sub(a, b) o = Neg(u) out = ai.coda.PutTokens(x, i, g, u)", "no difference, or others read it"),
        ("u = Sub(a, c) out = ai.coda.PutTokens(x, i, g, u)", "have different shapes"),
    ],
)
def test_what_is_left_alone_says_why(body: str, reason: str):
    text = f"""<ir_version: 10, opset_import: ["" : 20, "ai.coda" : 1]>
        g (float[B, N, 4] x, int64[B, K] i, float[B, K] g, float[B, K, 4] a, float[B, K, 4] b, float[4] c)
          => (float[B, N, 4] out) {{ {body} }}"""
    step = FusePutDifferences()
    assert not step(ir.from_proto(onnx.parser.parse_model(text))).modified
    assert [reason in told for told in step.declined] == [True]
