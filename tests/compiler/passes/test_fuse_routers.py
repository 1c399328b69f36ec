"""Scores from the adapter that reads the same tokens: on real graphs, and what is left alone."""

from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from tests.compiler.passes.test_fuse_attention import BEFORE, outputs
from tests.conftest import TINY, tiny_coda

from coda_compile import compile
from coda_compile.export import export
from coda_compile.passes import run_passes
from coda_compile.passes.fuse_routers import FuseRouters
from coda_compile.precision.quantize import quantize_model
from coda_models import CodaConfig
from coda_targets.routing import LAYER_TAG, ROLE_TAG


@pytest.mark.parametrize("family", TINY)
def test_every_router_is_part_of_its_adapter_and_computes_the_same(family: str):
    model = tiny_coda(family, CodaConfig(reduction=2))
    quantize_model(model, "int8")
    exported = ir.to_proto(export(model, opset=20))
    ids = np.random.default_rng(0).integers(4, 90, (3, 9))
    every = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    results = []
    for names in ((), ("fuse_routers",)):
        compiled = ir.from_proto(exported)
        run_passes(compiled, (*BEFORE, "fuse_adapters", *names, "remove_unused", "attach_functions"))
        results.append(outputs(compiled, {name: every[name] for name in model.input_names}))
    for plain, fused in zip(*results, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=0, atol=1e-6)
    nodes = [node for node in compiled.graph if node.op_type == "Int8RouterAdapter"]
    assert [(node.metadata_props[LAYER_TAG], node.metadata_props[ROLE_TAG]) for node in nodes] == [
        ("0", "adapter"),
        ("1", "adapter"),
    ]
    assert "Int8AddAdapter" not in {node.op_type for node in compiled.graph}
    again = FuseRouters()
    assert not again(compiled).modified
    assert again.declined == {"it is there already": 2}


@pytest.mark.parametrize("attention", ["k_to_k", "k_to_all"])
def test_it_compiles_and_verifies(attention: str, tmp_path: Path):
    model = tiny_coda("bert", CodaConfig(reduction=("2", "1"), attention=attention))
    counts = compile(model, output=tmp_path / "bundle", precision="int8").variant.operators
    assert counts["ai.coda::Int8RouterAdapter"] == counts["ai.coda::Int8AddAdapter"] == 1  # the other layer is dense


ADAPTER = "y, h = ai.coda.Int8AddAdapter(x, x, d, ds, db, u, us, ub) "
ROUTER = "c = MatMul(x, w) s = Squeeze(c, last) "
ROUTE = """i, g, used = ai.coda.Route <numerator = 2, denominator = 1, iterations = 1, epsilon_start = 1.0,
    epsilon_decay = 1.0, epsilon_final = 1.0> (s, mask) """


def graph(body: str, more: str = "") -> ir.Model:
    eight, bytes_ = ", ".join(["0.5"] * 8), ", ".join(["129"] * 8)
    text = f"""<ir_version: 10, opset_import: ["" : 20, "ai.coda" : 1]>
        g (float[B, S, 4] x, float[B, S, 4] other, bool[B, S] mask, float[4, 1] free)
        => (float[B, S, 4] y, float[B, K] g{more})
        <uint8[4, 2] d = {{{bytes_}}}, float[2] ds = {{0.1, 0.2}}, float[2] db = {{0, 1}}, uint8[2, 4] u = {{{bytes_}}},
         float[4] us = {{1, 1, 1, 1}}, float[4] ub = {{0, 0, 0, 0}}, float[4, 1] w = {{1, 2, 3, 4}},
         float[4, 2] two = {{{eight}}}, int64[1] last = {{-1}}, int64[1] first = {{1}}> {{ {body} }}"""
    return ir.from_proto(onnx.parser.parse_model(text))


@pytest.mark.parametrize("body", [ADAPTER + ROUTER + ROUTE, ROUTER + ADAPTER + ROUTE])
def test_in_either_order(body: str):
    model, step = graph(body), FuseRouters()
    assert step(model).modified
    assert not step.declined
    assert [node.op_type for node in model.graph] == ["Int8RouterAdapter", "Route"]
    assert [value.name for value in model.graph[0].outputs] == ["y", "h", "s"]


PRODUCT = "scores are no product with one column"
ADAPTERS = "no adapter in eight bits reads the same tokens before they are routed"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (graph(ADAPTER + ROUTER.replace("MatMul(x", "MatMul(other") + ROUTE), ADAPTERS),
        (graph(ADAPTER.replace("(x, x", "(x, other") + ROUTER + ROUTE), ADAPTERS),
        (graph(ROUTER + ROUTE + ADAPTER), ADAPTERS),
        (graph(ADAPTER + ROUTER.replace("w)", "free)") + ROUTE), PRODUCT),
        (graph(ADAPTER + ROUTER.replace("last", "first") + ROUTE), PRODUCT),
        (graph(ADAPTER + "c = MatMul(x, two) s = Squeeze(c, last) " + ROUTE), PRODUCT),
        (graph(ADAPTER + ROUTER + ROUTE, ", float[B, S, 1] c"), PRODUCT),
        (graph(ADAPTER + "c = MatMul(x, w) n = Neg(c) s = Squeeze(n, last) " + ROUTE), PRODUCT),
    ],
)
def test_what_does_not_fit_is_left_and_told(model: ir.Model, reason: str):
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    step = FuseRouters()
    assert not step(model).modified
    assert step.declined == {reason: 1}
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_graphs_without_routers_are_left_alone(plain):
    assert not FuseRouters()(plain()).modified
