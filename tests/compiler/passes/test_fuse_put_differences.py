"""Differences scattered back in one operator: on real graphs, and what is left alone."""

import pytest
from tests.compiler.passes.graphs import compare, parsed, why_declined
from tests.conftest import tiny_coda
from tests.exporting import export

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


@pytest.mark.parametrize("family", ["bert", "roberta-prelayernorm"])
@pytest.mark.parametrize("blend", [True, False])
def test_every_stand_in_is_what_is_taken_off(family: str, blend: bool):
    model = tiny_coda(family, CodaConfig(reduction=2, stand_in=4))
    compiled, report = compare(model, FusePutDifferences(blend=blend))
    operator = "BlendTokens" if blend else "PutDifference"
    gathers = {"ai.coda::TakeTokens": -2} if blend else {}
    assert report.operators == {"Sub": -2, "ai.coda::PutTokens": -2, f"ai.coda::{operator}": 2, **gathers}
    assert [n.metadata_props[LAYER_TAG] for n in compiled.graph if n.op_type == operator] == ["0", "1"]
    assert not FusePutDifferences()(compiled).modified


@pytest.mark.parametrize(
    ("taken", "operators"),
    [
        ("ai.coda.TakeTokens(x, i)", ["BlendTokens"]),
        ("ai.coda.TakeTokens(y, i)", ["TakeTokens", "PutDifference"]),  # of something else
        ("ai.coda.TakeTokens(x, j)", ["TakeTokens", "PutDifference"]),  # from other places
        ("ai.coda.TakeTokens(x, i) o = Neg(b)", ["TakeTokens", "Neg", "PutDifference"]),  # others read it too
    ],
)
def test_blended_is_what_lies_in_the_same_places(taken: str, operators: list[str]):
    text = f"""g (float[B, N, 4] x, float[B, N, 4] y, int64[B, K] i, int64[B, K] j, float[B, K] g, float[B, K, 4] a)
        => (float[B, N, 4] out) {{ b = {taken} u = Sub(a, b) out = ai.coda.PutTokens(x, i, g, u) }}"""
    model = parsed(text)
    for node in model.graph:
        if node.op_type == "TakeTokens":
            node.outputs[0].shape = model.graph.inputs[5].shape
    assert FusePutDifferences()(model).modified
    assert [node.op_type for node in model.graph] == operators


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
