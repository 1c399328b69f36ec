"""GELU with what stands before it: on real graphs in float32 and in int8, and what is left alone."""

import pytest
from tests.compiler.passes.graphs import compare, parsed, serialized, why_declined
from tests.conftest import tiny_coda

from coda_compile.passes.fuse_gelus import FuseGelus
from coda_compile.precision import get_precision
from coda_models import CodaConfig
from coda_targets.routing import LAYER_TAG, ROLE_TAG


@pytest.mark.parametrize(
    ("precision", "changed"),
    [
        ("fp32", {"Add": -2, "Gelu": -2, "ai.coda::AddGelu": 2}),
        ("int8", {"Gelu": -2, "ai.coda::Int8Linear": -2, "ai.coda::Int8LinearGelu": 2}),
    ],
)
def test_every_feed_forward_is_fused(precision: str, changed: dict[str, int]):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    if precision == "int8":
        get_precision(precision).quantise(model, (), True)
    compiled, report = compare(model, FuseGelus(), atol=2e-5)
    assert report.operators == changed
    nodes = [node for node in compiled.graph if node.op_type in ("AddGelu", "Int8LinearGelu")]
    assert [(n.metadata_props[LAYER_TAG], n.metadata_props[ROLE_TAG]) for n in nodes] == [
        ("0", "feed_forward"),
        ("1", "feed_forward"),
    ]
    before = serialized(compiled)
    assert not FuseGelus()(compiled).modified
    assert serialized(compiled) == before


NO_SUM = "its input is no sum with a constant bias that it alone reads"


@pytest.mark.parametrize(
    ("body", "reason", "value"),
    [
        ('s = Add(x, b) out = Gelu <approximate = "tanh"> (s)', "it is the tanh approximation", ""),
        ("s = Add(x, v) out = Gelu(s)", NO_SUM, "s"),  # v may change
        ("s = Add(x, b) g = Gelu(s) out = Add(g, s)", NO_SUM, "s"),
        ("out = Gelu(x)", NO_SUM, "x"),
    ],
)
def test_what_is_left_alone_says_why(body: str, reason: str, value: str):
    text = f"""g (float[B, S, 4] x, float[4] v) => (float[B, S, 4] out)
        <float[4] b = {{1.0, 2.0, 3.0, 4.0}}> {{ {body} }}"""
    declined = why_declined(FuseGelus(), parsed(text, shapes=True))
    assert (declined.reason, declined.value.name or "") == (reason, value)
