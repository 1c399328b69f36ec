"""Attention to all tokens with its projections: on real graphs, and what is left alone."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.compiler.passes.graphs import BEFORE, assert_not_here, compare, outputs, parsed, why_declined
from tests.conftest import tiny_coda

from coda_compile import CompileOptions, compile
from coda_compile.passes import operator_counts
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.fuse_attention import FuseAttention
from coda_compile.passes.fuse_k_to_all import FuseKToAll
from coda_compile.passes.outcome import Fused
from coda_compile.precision import get_precision
from coda_models import CodaConfig
from coda_targets.routing import LAYER_TAG, ROLE_TAG

THIN = {"stand_in": 4, "key_value_rank": 6}
OPERATORS = {"CrossAttention": {}, "KToAllAttention": THIN}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    ("family", "precision"), [("bert", "fp32"), ("mpnet", "int8"), ("roberta-prelayernorm", "fp32")]
)
def test_every_layer_is_fused_and_computes_the_same(family: str, precision: str, operator: str):
    model = tiny_coda(family, CodaConfig(reduction=2, attention="k_to_all", **OPERATORS[operator]))
    if precision == "int8":
        get_precision("int8").quantise(model, (), True)
    compiled, _ = compare(model, FuseKToAll(), before=(*BEFORE, FuseAttention()), atol=1e-5)
    nodes = [node for node in compiled.graph if node.op_type == operator]
    tags = [(node.metadata_props[LAYER_TAG], node.metadata_props[ROLE_TAG]) for node in nodes]
    assert tags == [("0", "attention"), ("1", "attention")]
    kinds = {node.op_type for node in compiled.graph}
    assert not kinds & {"MultiHeadAttention", "SetTokens", "Split"}
    assert not FuseKToAll()(compiled).outcomes


def test_it_compiles_and_verifies(tmp_path: Path):
    model = tiny_coda("bert", CodaConfig(reduction=("2", "1"), attention="k_to_all", **THIN))
    counts = compile(model, CompileOptions(precision="int8"), output=tmp_path / "bundle").variant.operators
    assert counts["ai.coda::KToAllAttention"] == 1
    assert "ai.coda::SetTokens" not in counts


def test_attention_of_the_same_tokens_is_another_pass_s(raw: ir.Model):
    FuseAttention()(raw)
    assert_not_here(FuseKToAll(), raw)


LINEARS = """q0 = MatMul({q}, w) q = Add(q0, b)
  k0 = MatMul({k}, w) k = Add(k0, b)
  v0 = MatMul({v}, {wv}) v = Add(v0, {bv})
  {between}
  y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, {memory}{rest})
  {tail}"""
SCATTER = """kv = Concat <axis = {axis}> (k, v) s = ai.coda.SetTokens(thin, i, u, kv)
  k1, v1 = Split <axis = {axis}, num_outputs = 2> (s)"""
TO_OTHERS = {"q": "x", "k": "other", "v": "other", "memory": "k, v"}
TO_THIN = {"q": "x", "k": "x", "v": "x", "memory": "k1, v1", "between": SCATTER.format(axis=-1)}


def graph(
    parts: dict[str, str], *, rest: str = ", , , bias", more: str = "", tail: str = "", **changed: str
) -> ir.Model:
    given_ = {"wv": "w", "bv": "b", "between": "", "rest": rest, "tail": tail, **parts, **changed}
    weights, zeros = ", ".join(str(i % 7 - 3) for i in range(64)), ", ".join(["0.5"] * 8)
    text = f"""g (float[B, K, 8] x, float[B, N, 8] other, float[B, N, 16] thin, int64[B, K] i, bool[B, K] u,
        float[B, 1, K, N] bias) => (float[B, K, 8] y{more})
        <float[8, 8] w = {{{weights}}}, float[8] b = {{{zeros}}}, float[8, 4] w4 = {{{", ".join(["1"] * 32)}}},
         float[4] b4 = {{1, 2, 3, 4}}> {{ {LINEARS.format(**given_)} }}"""
    return parsed(text)


def feed() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 3, 8), "other": (2, 5, 8), "thin": (2, 5, 16), "bias": (2, 1, 3, 5)}
    made = {name: rng.normal(size=shape).astype(np.float32) * 0.1 for name, shape in shapes.items()}
    return {**made, "i": np.array([[4, 0, 2], [1, 3, 0]]), "u": np.array([[True, False, True], [True, True, False]])}


@pytest.mark.parametrize(
    ("parts", "more", "tail", "kinds"),
    [
        (TO_OTHERS, "", "", {"MatMul": 2, "Add": 2, "ai.coda::CrossAttention": 1}),
        (TO_THIN, "", "", {"MatMul": 1, "Add": 1, "ai.coda::KToAllAttention": 1}),
        (
            {**TO_THIN, "between": SCATTER.format(axis=2)},
            ", int64[1] n",
            "n = Shape <start = 1, end = 2> (q)",
            {"MatMul": 1, "Add": 1, "ai.coda::KToAllAttention": 1, "Shape": 1},
        ),
    ],
)
def test_both_forms(parts: dict[str, str], more: str, tail: str, kinds: dict[str, int]):
    model, plain = (graph(parts, more=more, tail=tail) for _ in range(2))
    assert FuseKToAll()(model).outcomes == (Fused(),)
    assert operator_counts(model) == kinds
    assert not FuseKToAll()(model).modified
    results = []
    for each in (model, plain):
        AttachFunctions()(each)
        results.append(outputs(each, feed()))
    for found, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


NO_LINEAR = "a projection is no linear layer that it alone reads"
APART = "projections that belong together read different tokens"
WIDTH = "its values are of another width than its keys"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (graph(TO_OTHERS, rest=""), "nothing is added to its scores"),
        (graph(TO_OTHERS, rest=", b3, , bias"), "it has a bias, a padding mask or a cache of its own"),
        (graph(TO_OTHERS, v="thin"), APART),
        (graph(TO_THIN, v="other"), APART),
        (graph(TO_OTHERS, wv="w4", bv="b4"), WIDTH),
        (graph(TO_OTHERS, more=", float[B, N, 8] z", tail="z = Neg(k)"), NO_LINEAR),
        (graph(TO_THIN, more=", float[B, N, 16] z", tail="z = Neg(s)"), NO_LINEAR),
        (graph(TO_THIN, more=", float[B, N, 16] z", tail="z = Neg(kv)"), NO_LINEAR),
        (graph(TO_THIN, memory="v1, k1"), NO_LINEAR),
        (graph(TO_THIN, between=SCATTER.format(axis=1)), NO_LINEAR),
    ],
)
def test_what_does_not_fit_is_left_alone_and_says_why(model: ir.Model, reason: str):
    assert why_declined(FuseKToAll(), model).reason == reason
