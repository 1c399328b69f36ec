"""Lookups, their sum and its norm in one operator: on every kind of encoder, in float32 and eight bits, and what is left."""

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from tests.compiler.passes.test_fuse_attention import BEFORE, outputs
from tests.conftest import tiny_coda

from coda_compile.export import export
from coda_compile.passes import run_passes
from coda_compile.passes.fuse_embeddings import FuseEmbeddings
from coda_compile.precision import get_precision
from coda_compile.precision.layers import replace
from coda_compile.verify.cases import Inputs, make_case
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
    exported = ir.to_proto(export(model, opset=20))
    case = make_case(Inputs.of(model), 3, 11, ragged=True, seed=0)
    results = []
    for names in ((), ("fuse_embeddings",)):
        compiled = ir.from_proto(exported)
        reports = run_passes(compiled, (*BEFORE, *names, "remove_unused", "attach_functions"))
        results.append(outputs(compiled, case.inputs))
    for plain, fused in zip(*results, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=0, atol=5e-5)  # a last bit may round to another level
    operator = "ai.coda::EmbedNorm" if precision == "fp32" else "ai.coda::Int8EmbedNorm"
    rounded = {"Cast": -1, "Mul": -1, "Gather": changed["Gather"] - 1} if precision == "int8" else {}
    assert reports[len(BEFORE)].operators == {"LayerNormalization": -1, operator: 1} | changed | rounded
    (node,) = (node for node in compiled.graph if node.op_type.endswith("EmbedNorm"))
    assert node.metadata_props[ROLE_TAG] == "embeddings"
    step = FuseEmbeddings()
    assert not step(compiled).modified
    assert not step.declined


LOOKUPS = "w = Gather(W, ids) t = Gather(T, kinds) p = Gather(P, places)"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("w = Gather(W, ids) s = Add(w, x) out = LayerNormalization(s, v, v)", "not two or three lookups"),
        (f"{LOOKUPS} a = Add(w, t) b = Add(a, p) s = Add(b, x) out = LayerNormalization(s, v, v)", "not two or three"),
        ("t = Gather(T, kinds) p = Gather(P, places) s = Add(t, p) out = LayerNormalization(s, v, v)", "by an input"),
        (f"{LOOKUPS} s = Add(w, p) out = LayerNormalization(s, v)", "it has no bias"),
        (f"{LOOKUPS} s = Add(w, p) out = LayerNormalization <axis = 1> (s, v, v)", "norms more than the last axis"),
    ],
)
def test_what_is_left_alone_says_why(body: str, reason: str):
    step = FuseEmbeddings()
    assert not step(graph(body)).modified
    assert [reason in told for told in step.declined] == [True]


@pytest.mark.parametrize(
    "body",
    [
        "s = Add(x, x) out = LayerNormalization(s, v, v)",
        f"{LOOKUPS} out = LayerNormalization(w, v, v)",
        "w = Gather <axis = 1> (W, ids) p = Gather <axis = 1> (P, places) s = Add(w, p) out = LayerNormalization(s, v, v)",
    ],
)
def test_norms_of_anything_else_are_not_its_own(body: str):
    step = FuseEmbeddings()
    assert not step(graph(body)).modified
    assert not step.declined


def graph(body: str) -> ir.Model:
    """ids are an input, kinds and places constants; tables of eight rows and columns, a vector of eight."""
    tables = ", ".join(f"float[8, 8] {name} = {{{', '.join(['1.0'] * 64)}}}" for name in ("W", "T", "P"))
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[B, 3] ids, float[B, 3, 8] x) => (float[B, 3, 8] out)
        <{tables}, float[8] v = {{{", ".join(["1.0"] * 8)}}}, int64[1, 3] kinds = {{0, 0, 1}}, int64[1, 3] places = {{0, 1, 2}}>
        {{ {body} }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    model.graph.name = "g"
    return model
