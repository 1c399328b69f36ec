"""Attention in one operator: every family and both kinds, what it computes, and what it leaves alone."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compiler.passes.graphs import BEFORE, outputs, parsed, why_declined
from tests.conftest import TINY, tiny_coda
from tests.exporting import export

from coda_compile.passes import operator_counts, run_passes
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.fuse_attention import FuseAttention
from coda_compile.passes.fuse_projections import FuseProjections
from coda_compile.passes.outcome import Fused
from coda_compile.passes.upstream import RemoveUnused
from coda_models import CodaConfig, CodaModel
from coda_targets.routing import LAYER_TAG, ROLE_TAG

AFTER = (RemoveUnused(), AttachFunctions())
FUSIONS = (FuseAttention(), FuseProjections())


def compare_fused(model: CodaModel, batch: int, tokens: int, seed: int) -> dict[str, int]:
    """Run a model with and without the fusions on ragged texts; returns the fused one's operators."""
    exported = ir.to_proto(export(model, opset=20))
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, tokens + 1, batch)
    every = {
        "input_ids": rng.integers(4, 100, (batch, tokens)),
        "attention_mask": (np.arange(tokens) < lengths[:, None]).astype(np.int64),
        "token_type_ids": np.zeros((batch, tokens), np.int64),
    }
    feed = {name: every[name] for name in model.signature.names}
    results = []
    for fusions in ((), FUSIONS):
        compiled = ir.from_proto(exported)
        run_passes(compiled, (*BEFORE, *fusions, *AFTER))
        results.append(outputs(compiled, feed))
    for plain, fused in zip(*results, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=0, atol=2e-5 * max(1.0, np.abs(plain).max()))
    return operator_counts(compiled)


# Every family in both kinds is compiled, and so verified, by the tests of the invariants.
@pytest.mark.parametrize(
    ("family", "attention"), [("bert", "k_to_k"), ("mpnet", "k_to_all"), ("roberta-prelayernorm", "dense")]
)
def test_all_kinds_are_fused_and_compute_the_same(family: str, attention: str):
    config = CodaConfig(reduction=1) if attention == "dense" else CodaConfig(reduction=2, attention=attention)
    counts = compare_fused(tiny_coda(family, config), 3, 21, 0)
    assert counts["com.microsoft::MultiHeadAttention" if attention == "k_to_all" else "ai.coda::SelfAttention"] == 2
    assert "Softmax" not in counts
    if family != "mpnet":  # its relative bias has a transpose of its own
        assert "Transpose" not in counts


@given(
    st.sampled_from(sorted(TINY)),
    st.sampled_from(["k_to_k", "k_to_all"]),
    st.sampled_from(["1", "2", "7/2", "8"]),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 2**31),
)
@settings(max_examples=4, deadline=None, derandomize=True)
def test_random_models_compute_the_same(
    family: str, attention: str, reduction: str, batch: int, tokens: int, seed: int
):
    compare_fused(
        tiny_coda(family, CodaConfig(reduction=reduction, attention=attention), seed % 100), batch, tokens, seed
    )


def test_fused_operators_keep_layer_and_role(raw: ir.Model):
    run_passes(raw, (*BEFORE, *FUSIONS))
    places = Counter(
        (node.metadata_props[LAYER_TAG], node.metadata_props[ROLE_TAG])
        for node in raw.graph
        if node.op_type == "SelfAttention"
    )
    assert places == {("0", "attention"): 1, ("1", "attention"): 1}


def test_the_checker_accepts_the_result(raw: ir.Model):
    run_passes(raw, (*BEFORE, *FUSIONS, *AFTER))
    onnx.checker.check_model(ir.to_proto(raw), full_check=True)
    assert raw.opset_imports["com.microsoft"] == 1
    assert not {domain for domain in raw.opset_imports if "fusion" in domain}


def test_a_softmax_of_another_kind_is_left_alone_and_says_why():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[N, 4] x) => (float[N, 4] y) { y = Softmax(x) }'
    )
    declined = why_declined(FuseAttention(), model)
    assert declined.reason == "a softmax is not between two matrix products, as attention's is"
    assert declined.value.op_type == "Softmax"
    assert "com.microsoft" not in model.opset_imports


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_thin_keys_stay_apart(family: str):
    config = CodaConfig(reduction=2, attention="k_to_all", stand_in=4, key_value_rank=6)
    model = tiny_coda(family, config)
    counts = compare_fused(model, 3, 21, 0)
    assert (counts["com.microsoft::MultiHeadAttention"], counts["ai.coda::SetTokens"]) == (2, 2)
    compiled = export(model, opset=20)
    run_passes(compiled, (*BEFORE, FuseAttention()))
    assert FuseProjections()(compiled).declined == {"a projection is no linear layer that it alone reads": 2}


SCORES = """
g (float[{sizes}] q, float[{keys}] k, float[{sizes}] v) => (float[A, B, C, D] y) {{
  t = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, t) p = Softmax <axis = -1> (s) y = MatMul(p, v)
}}
"""


@pytest.mark.parametrize(
    ("sizes", "keys", "fused"),
    [("B, 2, N, 4", "B, 2, N, 4", True), ("B, H, N, 4", "B, H, N, 4", False), ("B, 2, N, 4", "B, 2, M, 4", False)],
)
def test_sizes_have_to_be_known(sizes: str, keys: str, fused: bool):
    """onnxscript's rule takes two unknown sizes for one, and leaves an operator that no runtime knows."""
    model = parsed(SCORES.format(sizes=sizes, keys=keys))
    assert FuseAttention()(model).modified == fused
    assert ("com.microsoft::MultiHeadAttention" in operator_counts(model)) == fused
    assert not {domain for domain in model.opset_imports if "fusion" in domain}


PROJECTIONS = """
<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g (float[B, N, 8] x, float[B, N, 8] other) => (float[B, N, 8] y{more})
<float[8, 8] w = {{{weights}}}, float[8] b = {{0, 0, 0, 0, 0, 0, 0, 0}}>
{{
  q0 = MatMul(x, w) q = Add(q0, b)
  k0 = MatMul({keys}, w) k = Add(b, k0)
  v0 = MatMul(x, w) v = Add(v0, b)
  y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v{rest})
  {tail}
}}
"""


def projections(keys: str = "x", rest: str = "", more: str = "", tail: str = "") -> ir.Model:
    weights = ", ".join(str(i % 7 - 3) for i in range(64))
    return ir.from_onnx_text(PROJECTIONS.format(weights=weights, keys=keys, rest=rest, more=more, tail=tail))


def test_three_products_of_one_input_become_one():
    model, plain = projections(), projections()
    assert FuseProjections()(model).outcomes == (Fused(),)
    assert operator_counts(model) == {"com.microsoft::Attention": 1}
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32) * 0.1
    feed = {"x": x, "other": x}
    np.testing.assert_allclose(outputs(model, feed)[0], outputs(plain, feed)[0], rtol=0, atol=1e-5)
    assert not FuseProjections()(model).modified


MASKED = "ones = Constant <value = int64[4] {{1, 1, 1, 1}}> () every = Expand(mask, ones)"


@pytest.mark.parametrize(
    ("shape", "kind"), [("B, 1, 1, N", "ai.coda::SelfAttention"), ("B, 1, N, N", "com.microsoft::Attention")]
)
def test_one_number_for_each_key_needs_no_copies(shape: str, kind: str):
    text = PROJECTIONS.replace("float[B, N, 8] other", f"float[{shape}] mask").replace("  y = ", f"  {MASKED}\n  y = ")
    weights = ", ".join(str(i % 7 - 3) for i in range(64))
    model = ir.from_onnx_text(text.format(weights=weights, keys="x", rest=", , , every", more="", tail=""))
    assert FuseProjections()(model).modified
    assert operator_counts(model)[kind] == 1


def test_who_asks_for_a_size_asks_the_input_instead():
    model = projections(more=", int64[1] n", tail="n = Shape <start = 1, end = 2> (q)")
    assert FuseProjections()(model).modified
    x = np.zeros((2, 5, 8), np.float32)
    assert outputs(model, {"x": x, "other": x})[1].tolist() == [5]


NO_LINEAR = "a projection is no linear layer that it alone reads"


@pytest.mark.parametrize(
    ("model", "reason", "value"),
    [
        (projections(keys="other"), "queries and keys come from different tokens", "other"),
        (projections(rest=", b3"), "it has a bias, a padding mask or a cache of its own", ""),
        (projections(more=", float[B, N, 8] z", tail="z = Neg(k)"), NO_LINEAR, "k"),
        (projections(more=", int64[3] n", tail="n = Shape(q)"), NO_LINEAR, "q"),
    ],
)
def test_what_does_not_fit_is_left_alone_and_says_why(model: ir.Model, reason: str, value: str):
    declined = why_declined(FuseProjections(), model)
    assert (declined.reason, declined.value.name or "") == (reason, value)


def test_a_quantised_projection_beside_others_is_left_alone():
    model = projections()
    x, weight = model.graph[0].inputs
    quantized = ir.Value(
        name="wq",
        type=ir.TensorType(ir.DataType.UINT8),
        shape=weight.shape,
        const_value=ir.tensor(np.full((8, 8), 128, np.uint8)),
    )
    model.graph.register_initializer(quantized)
    bias = model.graph.initializers["b"]
    linear = ir.node("Int8Linear", [x, quantized, bias, bias], domain="ai.coda")
    old = [model.graph[1], model.graph[0]]
    ir.convenience.replace_nodes_and_values(model.graph, old[0], old, [linear], old[0].outputs, linear.outputs)
    assert why_declined(FuseProjections(), model).reason == "some of the projections are quantised and others are not"
