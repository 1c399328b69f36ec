"""Differences scattered back in one operator: on real graphs, and what is left alone."""

import pytest
from tests.compiler.passes.graphs import compare, parsed, why_declined
from tests.conftest import tiny_coda

from coda_compile.export import export
from coda_compile.passes.fuse_put_differences import FusePutDifferences
from coda_models import CodaConfig
from coda_targets.routing import LAYER_TAG

NO_DIFFERENCE = "its update is no difference that it alone reads"


@pytest.mark.parametrize("attention", ["k_to_k", "k_to_all"])
def test_every_post_norm_layer_scatters_a_difference(attention: str):
    model = tiny_coda("bert", CodaConfig(reduction=2, attention=attention))
    compiled, report = compare(model, FusePutDifferences())
    assert report.operators == {"Sub": -2, "ai.coda::PutTokens": -2, "ai.coda::PutDifference": 2}
    assert [n.metadata_props[LAYER_TAG] for n in compiled.graph if n.op_type == "PutDifference"] == ["0", "1"]
    assert not FusePutDifferences()(compiled).modified


def test_pre_norm_layers_compute_updates_as_such():
    compiled = export(tiny_coda("roberta-prelayernorm", CodaConfig(reduction=2)), opset=20)
    result = FusePutDifferences()(compiled)
    assert not result.modified
    assert result.declined == {NO_DIFFERENCE: 2}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("u = Sub(a, b) o = Neg(u) out = ai.coda.PutTokens(x, i, g, u)", NO_DIFFERENCE),
        ("u = Sub(a, c) out = ai.coda.PutTokens(x, i, g, u)", "the two sides of the difference have different shapes"),
    ],
)
def test_what_is_left_alone_says_why(body: str, reason: str):
    text = f"""g (float[B, N, 4] x, int64[B, K] i, float[B, K] g, float[B, K, 4] a, float[B, K, 4] b, float[4] c)
        => (float[B, N, 4] out) {{ {body} }}"""
    declined = why_declined(FusePutDifferences(), parsed(text))
    assert (declined.reason, declined.value.name) == (reason, "u")
