"""Residual sum and layer norm in one operator: what is fused, what it computes, and what is left alone."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.compiler.passes.graphs import compare, outputs, parsed, why_declined
from tests.conftest import tiny_coda
from tests.exporting import export

from coda_compile.passes import run_passes
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.fuse_norms import FuseNorms
from coda_models import CodaConfig
from coda_targets.routing import LAYER_TAG

NO_SUM = "its input is no sum that it alone reads"


@pytest.mark.parametrize(("family", "reduction"), [("bert", 2), ("distilbert", 1)])
def test_every_post_norm_of_a_layer_is_fused_with_its_bias(family: str, reduction: int):
    compiled, report = compare(tiny_coda(family, CodaConfig(reduction=reduction)), FuseNorms())
    assert report.operators == {"Add": -8, "LayerNormalization": -4, "ai.coda::AddNorm": 4}
    assert [n.metadata_props[LAYER_TAG] for n in compiled.graph if n.op_type == "AddNorm"] == ["0", "0", "1", "1"]


def test_pre_norm_layers_have_one_sum_that_nobody_else_reads():
    compiled = export(tiny_coda("roberta-prelayernorm", CodaConfig(reduction=2)), opset=20)
    result = FuseNorms()(compiled)
    fused = [node.metadata_props.get(LAYER_TAG) for node in compiled.graph if node.op_type == "AddNorm"]
    assert fused == [None, "0", "1"]  # the embeddings' too
    assert (result.fused, result.declined) == (3, {NO_SUM: 3})  # the layers' first, the final one


def graph(body: str) -> ir.Model:
    text = f"""g (float[B, S, 4] x, float[B, S, 4] y, float[4] v, float[4] s, float[B, S, W] wide, float[B, S, W] wider)
        => (float[B, S, 4] out)
        <float[4] w = {{1.0, 2.0, 3.0, 4.0}}, float[4] b = {{0.5, 0.5, 0.5, 0.5}}> {{ {body} }}"""
    return parsed(text, shapes=True)


@pytest.mark.parametrize(
    ("body", "shift"),
    [
        ("m = Add(y, b) t = Add(x, m) out = LayerNormalization <epsilon = 0.5> (t, w, b)", True),
        ("m = Add(b, y) t = Add(m, x) out = LayerNormalization <axis = 2, epsilon = 0.5> (t, w, b)", True),
        ("t = Add(x, y) out = LayerNormalization <epsilon = 0.5> (t, w, b)", False),
        ("t = Add(x, y) out, unread = LayerNormalization <epsilon = 0.5> (t, w, b)", False),
        ("m = Add(y, v) t = Add(x, m) out = LayerNormalization <epsilon = 0.5> (t, w, b)", False),  # v may change
        ("m = Add(y, b) t = Add(x, m) u = LayerNormalization <epsilon = 0.5> (t, w, b) out = Add(u, m)", False),
    ],
)
def test_a_bias_joins_where_it_is_constant_and_nobody_else_reads_it(body: str, shift: bool):
    rng = np.random.default_rng(1)
    feed: dict[str, Any] = {name: rng.normal(size=(2, 3, 4)).astype(np.float32) for name in ("x", "y", "wide", "wider")}
    feed |= {name: rng.normal(size=4).astype(np.float32) for name in "vs"}
    (wanted,) = outputs(graph(body), feed)
    model = graph(body)
    run_passes(model, (FuseNorms(), AttachFunctions()))
    (fused,) = (node for node in model.graph if node.op_type == "AddNorm")
    assert (fused.inputs[2].name == "b") == shift
    np.testing.assert_allclose(outputs(model, feed)[0], wanted, rtol=0, atol=1e-6)
    assert not FuseNorms()(model).modified


@pytest.mark.parametrize(
    ("body", "reason", "value"),
    [
        ("out = LayerNormalization(x, w, b)", NO_SUM, "x"),
        ("t = Add(x, y) n = LayerNormalization(t, w, b) out = Add(n, t)", NO_SUM, "t"),
        ("t = Add(x, v) out = LayerNormalization(t, w, b)", "the two sides of the sum have different shapes", ""),
        ("t = Add(wide, wider) out = LayerNormalization(t, w, b)", "the width of the sum is not known", "wide"),
        ("t = Add(x, y) out = LayerNormalization(t, w)", "it has no bias", ""),
        (
            "t = Add(x, y) e = Add(x, y) out = LayerNormalization <axis = 1> (t, e, e)",
            "it normalises more than the last axis",
            "",
        ),
        (
            "t = Add(x, y) n, mean = LayerNormalization(t, w, b) out = Add(n, mean)",
            "its mean or its deviation is read too",
            "mean",
        ),
    ],
)
def test_what_is_left_alone_says_why(body: str, reason: str, value: str):
    declined = why_declined(FuseNorms(), graph(body))
    assert (declined.reason, declined.value.name or "") == (reason, value)
