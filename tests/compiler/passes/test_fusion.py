"""Outcomes of fusions on random graphs: they add up, say what changed, and a second run has nothing left to fuse."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compiler.passes.graphs import outputs, parsed, serialized

from coda_compile.passes import operator_counts, run_passes
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.fuse_adapters import FuseAdapters
from coda_compile.passes.fuse_attention import FuseAttention
from coda_compile.passes.fuse_embeddings import FuseEmbeddings
from coda_compile.passes.fuse_gelus import FuseGelus
from coda_compile.passes.fuse_norms import FuseNorms
from coda_compile.passes.fuse_projections import FuseProjections
from coda_compile.passes.fuse_put_differences import FusePutDifferences
from coda_compile.passes.fuse_routers import FuseRouters
from coda_compile.passes.fusion import Fusion, FusionResult, NodeFusion
from coda_compile.passes.merge_low_rank import MergeLowRank
from coda_compile.passes.outcome import Declined, Fused, NotHere
from coda_compile.passes.pack_rows import PackRows
from coda_compile.passes.prune_heads import PruneHeads
from coda_compile.passes.trim_to_readout import TrimToReadout
from coda_compile.passes.upstream import RemoveUnused

ON_NODES = (
    MergeLowRank,
    PruneHeads,
    TrimToReadout,
    FuseProjections,
    FuseAdapters,
    FuseRouters,
    FuseGelus,
    FuseEmbeddings,
    FuseNorms,
    FusePutDifferences,
)
# Each reads one or two earlier values of [batch, tokens, 4].
STATEMENTS = (
    "MatMul({a}, wide)",
    "Add({a}, bias)",
    "Add({a}, {b})",
    "Sub({a}, {b})",
    "Gelu({a})",
    "LayerNormalization({a}, bias, bias)",
    "ai.coda.PutTokens({a}, first, gate, {b})",
    "ai.coda.Adapter({a}, down, thin, up, bias)",
    "com.microsoft.MultiHeadAttention <num_heads = 2> ({a}, {b}, {b})",
)


@st.composite
def graphs(draw: st.DrawFn) -> str:
    """Random chains of what fusions look for, with a low-rank branch or a bottleneck here and there."""
    names, body = ["x", "y"], []
    for i in range(draw(st.integers(1, 8))):
        a, b = (draw(st.sampled_from(names[-3:])) for _ in "ab")
        kind = draw(st.sampled_from((*STATEMENTS, "low rank", "bottleneck")))
        if kind == "low rank":
            body.append(f"d{i} = MatMul({a}, down) v{i} = MatMul(d{i}, up)")
        elif kind == "bottleneck":
            body.append(f"d{i} = MatMul({a}, down) e{i} = Add(d{i}, thin) r{i} = Relu(e{i}) u{i} = MatMul(r{i}, up)")
            body.append(f"v{i} = Add(u{i}, bias)")
        else:
            body.append(f"v{i} = {kind.format(a=a, b=b)}")
        names.append(f"v{i}")
    return f"""g (float[B, 3, 4] x, float[B, 3, 4] y, int64[B, 3] first, float[B, 3] gate)
        => (float[B, 3, 4] {names[-1]})
        <float[4, 4] wide = {{{", ".join(str(i % 5 / 4) for i in range(16))}}}, float[4, 2] down = {{1,0,2,1,0,1,1,1}},
         float[2, 4] up = {{1,2,0,1,1,0,1,2}}, float[2] thin = {{0.5, -0.5}}, float[4] bias = {{1, 2, 3, 4}}>
        {{ {" ".join(body)} }}"""


def read(text: str) -> ir.Model:
    model = parsed(text, shapes=True)
    for node in model.graph:  # shape inference does not know our operators
        for value in node.outputs:
            if value.shape is None:
                value.shape, value.type = ir.Shape(["B", 3, 4]), ir.TensorType(ir.DataType.FLOAT)
    return model


@given(graphs())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_outcomes_add_up_and_say_what_changed(text: str):
    for kind in ON_NODES:
        model = read(text)
        before, places = serialized(model), sum((n.domain, n.op_type) == kind.anchor for n in model.graph)
        result = kind()(model)
        kinds = Counter(type(outcome) for outcome in result.outcomes)
        assert set(kinds) <= {Fused, Declined, NotHere}
        assert sum(kinds.values()) <= places
        assert (kinds[Fused], kinds[Declined]) == (result.fused, sum(result.declined.values()))
        assert result.modified == (kinds[Fused] > 0) == (serialized(model) != before)
        if not kinds[Fused]:
            assert sum(kinds.values()) == places


@given(graphs(), st.integers(0, 99))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_every_fusion_keeps_what_a_graph_computes(text: str, seed: int):
    random = np.random.default_rng(seed)
    feed = {name: random.normal(size=(2, 3, 4)).astype(np.float32) for name in "xy"}
    feed |= {"first": np.tile(np.arange(3), (2, 1)), "gate": random.random((2, 3)).astype(np.float32)}
    plain = read(text)
    run_passes(plain, (AttachFunctions(),))
    (wanted,) = outputs(plain, feed)
    for kind in ON_NODES:
        model = read(text)
        if kind()(model).modified:
            run_passes(model, (RemoveUnused(), AttachFunctions()))
            (given,) = outputs(model, feed)
            np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("kind", [*ON_NODES, FuseAttention, PackRows])
def test_nothing_to_fuse_is_no_outcome_but_not_here(kind: type[Fusion], plain):
    result = kind()(plain())
    assert (result.modified, result.fused, result.declined) == (False, 0, {})


def test_reasons_are_counted_and_values_are_kept_apart():
    a, b = (ir.Value(name=name) for name in "ab")
    outcomes = (Declined("too wide", a), Fused(), NotHere(), Declined("too wide", b), Declined("shared"))
    result = FusionResult(parsed("g (float x) => (float y) { y = Relu(x) }"), True, outcomes)
    assert (result.fused, result.declined) == (1, {"too wide": 2, "shared": 1})
    assert str(outcomes[0]) == f"too wide: {a}"
    assert str(outcomes[-1]) == "shared"


def test_a_place_that_another_rewrite_removed_is_not_attempted():
    class RemoveBoth(NodeFusion):
        """Removes every ReLU at the first."""

        anchor = ("", "Relu")

        def attempt(self, graph: ir.Graph, node: ir.Node) -> Fused:
            every = [each for each in graph if each.op_type == "Relu"]
            graph.remove(every[::-1])
            return Fused()

    model = parsed("g (float x) => (float y) { a = Relu(x) b = Relu(a) y = Neg(x) }")
    assert RemoveBoth()(model).outcomes == (Fused(),)
    assert operator_counts(model) == {"Neg": 1}
