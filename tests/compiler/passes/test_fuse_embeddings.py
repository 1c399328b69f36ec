"""Lookups, their sum and its norm in one operator: on every kind of encoder, in float32 and int8, and what is left."""

import onnx_ir as ir
import pytest
from tests.compiler.passes.graphs import assert_not_here, compare, parsed, why_declined
from tests.conftest import tiny_coda

from coda_compile.passes.fuse_embeddings import FuseEmbeddings
from coda_compile.precision import get_precision
from coda_compile.precision.layers import replace
from coda_models import CodaConfig
from coda_targets.routing import ROLE_TAG


@pytest.mark.parametrize(
    ("family", "changed"),
    [
        ("bert", {"Add": -2, "Gather": -3}),
        ("roberta", {"Add": -2, "Gather": -3}),
        ("roberta-prelayernorm", {"Add": -2, "Gather": -3}),
        ("distilbert", {"Add": -1, "Gather": -2}),
        ("mpnet", {"Add": -1, "Gather": -2}),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_embeddings_are_fused(family: str, changed: dict[str, int], precision: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replace, "_LARGE", 3000)  # numbers in a table: words alone, as in large models
    model = tiny_coda(family, CodaConfig(reduction=2))
    if precision == "int8":
        get_precision(precision).quantise(model, (), True)
    # In int8 a last bit may round to another integer.
    compiled, report = compare(model, FuseEmbeddings(), atol=5e-5)
    operator = "ai.coda::EmbedNorm" if precision == "fp32" else "ai.coda::Int8EmbedNorm"
    quantized = {"Cast": -1, "Mul": -1, "Gather": changed["Gather"] - 1} if precision == "int8" else {}
    assert report.operators == {"LayerNormalization": -1, operator: 1} | changed | quantized
    (node,) = (node for node in compiled.graph if node.op_type.endswith("EmbedNorm"))
    assert node.metadata_props[ROLE_TAG] == "embeddings"
    assert_not_here(FuseEmbeddings(), compiled)


LOOKUPS = "w = Gather(W, ids) t = Gather(T, kinds) p = Gather(P, places)"


TOO_MANY = "what it adds up is not two or three lookups"
NORM = "out = LayerNormalization(s, v, v)"
QUANTIZED = "q = Gather(Q, kinds) c = Cast <to = 1> (q) z = Gather(Z, kinds) t = Mul(c, z)"


@pytest.mark.parametrize(
    ("body", "reason", "value"),
    [
        (f"w = Gather(W, ids) s = Add(w, x) {NORM}", TOO_MANY, "s"),
        (f"{LOOKUPS} a = Add(w, t) b = Add(a, p) s = Add(b, x) {NORM}", TOO_MANY, "s"),
        (
            f"t = Gather(T, kinds) p = Gather(P, places) s = Add(t, p) {NORM}",
            "none of its lookups is by an input of the graph",
            "s",
        ),
        (
            f"w = Gather(W, ids) {QUANTIZED} s = Add(w, t) {NORM}",
            "a lookup of positions or types is quantised",
            "Q",
        ),
        (f"{LOOKUPS} s = Add(w, p) out = LayerNormalization(s, v)", "it has no bias", ""),
        (
            f"{LOOKUPS} s = Add(w, p) out = LayerNormalization <axis = 1> (s, v, v)",
            "it normalises more than the last axis",
            "",
        ),
    ],
)
def test_what_is_left_alone_says_why(body: str, reason: str, value: str):
    declined = why_declined(FuseEmbeddings(), graph(body))
    assert (declined.reason, declined.value.name or "") == (reason, value)


@pytest.mark.parametrize(
    "body",
    [
        "s = Add(x, x) out = LayerNormalization(s, v, v)",
        f"{LOOKUPS} out = LayerNormalization(w, v, v)",
        "w = Gather <axis = 1> (W, ids) p = Gather <axis = 1> (P, places) s = Add(w, p) out = LayerNormalization(s, v, v)",
    ],
)
def test_norms_of_anything_else_are_not_its_own(body: str):
    assert_not_here(FuseEmbeddings(), graph(body))


def graph(body: str) -> ir.Model:
    """ids are an input, kinds and places constants; tables of eight rows and columns, a vector of eight."""
    tables = ", ".join(f"float[8, 8] {name} = {{{', '.join(['1.0'] * 64)}}}" for name in ("W", "T", "P"))
    numbers = ", ".join(["1"] * 64)
    text = f"""g (int64[B, 3] ids, float[B, 3, 8] x) => (float[B, 3, 8] out)
        <{tables}, int8[8, 8] Q = {{{numbers}}}, float[8, 1] Z = {{{numbers[:22]}}}, float[8] v = {{{numbers[:22]}}},
         int64[1, 3] kinds = {{0, 0, 1}}, int64[1, 3] places = {{0, 1, 2}}> {{ {body} }}"""
    return parsed(text)
