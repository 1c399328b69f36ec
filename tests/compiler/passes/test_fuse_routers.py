"""Scores from the adapter that reads the same tokens: on real graphs, and what is left alone."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from tests.compiler.passes.graphs import BEFORE, assert_not_here, compare, parsed, why_declined
from tests.conftest import TINY, tiny_coda

from coda_compile import CompileOptions, compile
from coda_compile.passes.fuse_adapters import FuseAdapters
from coda_compile.passes.fuse_routers import FuseRouters
from coda_compile.passes.outcome import Fused
from coda_compile.precision import get_precision
from coda_models import CodaConfig
from coda_targets.routing import LAYER_TAG, ROLE_TAG


@pytest.mark.parametrize("family", TINY)
def test_every_router_is_part_of_its_adapter_and_computes_the_same(family: str):
    model = tiny_coda(family, CodaConfig(reduction=2))
    get_precision("int8").quantise(model, (), True)
    compiled, _ = compare(model, FuseRouters(), before=(*BEFORE, FuseAdapters()))
    nodes = [node for node in compiled.graph if node.op_type == "Int8RouterAdapter"]
    assert [(node.metadata_props[LAYER_TAG], node.metadata_props[ROLE_TAG]) for node in nodes] == [
        ("0", "adapter"),
        ("1", "adapter"),
    ]
    assert "Int8AddAdapter" not in {node.op_type for node in compiled.graph}
    assert_not_here(FuseRouters(), compiled)


@pytest.mark.parametrize("family", ["bert", "roberta-prelayernorm"])
def test_a_router_is_part_of_its_stand_in_too(family: str):
    model = tiny_coda(family, CodaConfig(reduction=2, stand_in=4))
    get_precision("int8").quantise(model, (), True)
    compiled, _ = compare(model, FuseRouters(), before=(*BEFORE, FuseAdapters()))
    nodes = [node for node in compiled.graph if node.op_type == "Int8RouterLowRank"]
    assert [(node.metadata_props[LAYER_TAG], node.metadata_props[ROLE_TAG]) for node in nodes] == [
        ("0", "stand_in"),
        ("1", "stand_in"),
    ]
    assert_not_here(FuseRouters(), compiled)


@pytest.mark.parametrize("attention", ["k_to_k", "k_to_all"])
def test_it_compiles_and_verifies(attention: str, tmp_path: Path):
    model = tiny_coda("bert", CodaConfig(reduction=("2", "1"), attention=attention))
    counts = compile(model, CompileOptions(precision="int8"), output=tmp_path / "bundle").variant.operators
    assert counts["ai.coda::Int8RouterAdapter"] == counts["ai.coda::Int8AddAdapter"] == 1  # the other layer is dense


ADAPTER = "y, h = ai.coda.Int8AddAdapter(x, x, d, ds, db, u, us, ub) "
ROUTER = "c = MatMul(x, w) s = Squeeze(c, last) "
ROUTE = """i, g, used = ai.coda.Route <numerator = 2, denominator = 1, iterations = 1, epsilon_start = 1.0,
    epsilon_decay = 1.0, epsilon_final = 1.0> (s, mask) """


def graph(body: str, more: str = "") -> ir.Model:
    eight, bytes_ = ", ".join(["0.5"] * 8), ", ".join(["129"] * 8)
    text = f"""g (float[B, S, 4] x, float[B, S, 4] other, bool[B, S] mask, float[4, 1] free)
        => (float[B, S, 4] y, float[B, K] g{more})
        <uint8[4, 2] d = {{{bytes_}}}, float[2] ds = {{0.1, 0.2}}, float[2] db = {{0, 1}}, uint8[2, 4] u = {{{bytes_}}},
         float[4] us = {{1, 1, 1, 1}}, float[4] ub = {{0, 0, 0, 0}}, float[4, 1] w = {{1, 2, 3, 4}},
         float[4, 2] two = {{{eight}}}, int64[1] last = {{-1}}, int64[1] first = {{1}}> {{ {body} }}"""
    return parsed(text)


@pytest.mark.parametrize("body", [ADAPTER + ROUTER + ROUTE, ROUTER + ADAPTER + ROUTE])
def test_in_either_order(body: str):
    model = graph(body)
    assert FuseRouters()(model).outcomes == (Fused(),)
    assert [node.op_type for node in model.graph] == ["Int8RouterAdapter", "Route"]
    assert [value.name for value in model.graph[0].outputs] == ["y", "h", "s"]


NO_LINEAR = "its scores are no linear layer with one output"
NO_ADAPTER = "no int8 adapter reads the same tokens before they are routed"


@pytest.mark.parametrize(
    ("model", "reason", "value"),
    [
        (graph(ADAPTER + ROUTER.replace("MatMul(x", "MatMul(other") + ROUTE), NO_ADAPTER, "other"),
        (graph(ADAPTER.replace("(x, x", "(x, other") + ROUTER + ROUTE), NO_ADAPTER, "x"),
        (graph(ROUTER + ROUTE + ADAPTER), NO_ADAPTER, "x"),
        (graph(ADAPTER + ROUTER.replace("w)", "free)") + ROUTE), NO_LINEAR, "s"),
        (graph(ADAPTER + ROUTER.replace("last", "first") + ROUTE), NO_LINEAR, "s"),
        (graph(ADAPTER + "c = MatMul(x, two) s = Squeeze(c, last) " + ROUTE), NO_LINEAR, "s"),
        (graph(ADAPTER + ROUTER + ROUTE, ", float[B, S, 1] c"), NO_LINEAR, "s"),
        (graph(ADAPTER + "c = MatMul(x, w) n = Neg(c) s = Squeeze(n, last) " + ROUTE), NO_LINEAR, "s"),
    ],
)
def test_what_does_not_fit_is_left_alone_and_says_why(model: ir.Model, reason: str, value: str):
    declined = why_declined(FuseRouters(), model)
    assert (declined.reason, declined.value.name) == (reason, value)


def test_graphs_without_routers_are_left_alone(plain: Callable[[], ir.Model]):
    assert_not_here(FuseRouters(), plain())
