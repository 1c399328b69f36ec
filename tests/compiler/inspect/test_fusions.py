"""Why a fusion did not happen: every reason on a graph that gives it, and silence where nothing could be fused."""

import onnx
import pytest

from coda_compile.inspect.fusions import UNKNOWN, Graph, Missed, fired, missed
from coda_compile.inspect.profile import Place

HEAD = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>'


def graph(text: str, *, shapes: dict[str, tuple[int | str, ...]] | None = None) -> Graph:
    """An optimised graph in one layer, weights W [4, 4] and b [4]."""
    inputs = "float[B, S, 4] x, float[B, S, 4] r"
    weights = "<float[4, 4] W = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}, float[4] b = {0,0,0,0}>"
    model = onnx.parser.parse_model(f"{HEAD} g ({inputs}) => (float[B, S, 4] y) {weights} {{ {text} }}")
    for name, shape in (shapes or {}).items():
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    for i, node in enumerate(model.graph.node):
        node.name = f"n{i}"
    return Graph(model.graph, {node.name: Place(0, "any") for node in model.graph.node})


def reasons(text: str, fusion: str, **options: dict[str, tuple[int | str, ...]]) -> list[str]:
    return [miss.reason for miss in missed(graph(text, **options))[0] if miss.fusion == fusion]


ATTENTION = "q = MatMul(h, W) k = MatMul(h, W) v = MatMul(h, W) s = MatMul(q, k) p = Softmax(s) y = MatMul(p, v)"


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("h = GatherND(x, r)", "it must begin at a LayerNormalization, and the projections read a GatherND"),
        ("h = Identity(x)", "it must begin at a LayerNormalization, and the projections read an Identity"),
        (
            "h = LayerNormalization(x, b, b) more = MatMul(h, W)",
            "the LayerNormalization before it must feed 3 MatMul, and feeds 4",
        ),
        ("h = LayerNormalization(x, b, b)", UNKNOWN),
    ],
)
def test_attention(before: str, reason: str):
    assert reasons(f"{before} {ATTENTION}", "Attention") == [reason]


def test_attention_is_found_through_masks_scales_heads_and_fused_products():
    text = """
        h = GatherND(x, r) q = MatMul(h, W) qb = Add(q, b) qr = Reshape(qb, r) qt = Transpose(qr)
        s = com.microsoft.FusedMatMul(qt, x) sm = Add(s, r) y = Softmax(sm)
    """
    assert reasons(text, "Attention") == ["it must begin at a LayerNormalization, and the projections read a GatherND"]


def test_projections_that_are_not_found_are_no_reason():
    assert reasons("s = MatMul(x, r) y = Softmax(s)", "Attention") == [UNKNOWN]


def test_a_softmax_that_is_no_attention_misses_nothing():
    assert missed(graph("y = Softmax(x)")) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("s = ScatterND(x, r, r) y = LayerNormalization(s, b, b)", "it takes an Add, and this norm reads a ScatterND"),
        ("y = LayerNormalization(x, b, b)", "it takes an Add, and this norm reads an input"),
        (
            "s = Add(x, r) y = LayerNormalization(s, b, b) t = Relu(s)",
            "the norm alone may read the sum, and Relu read it too",
        ),
        (
            "y = Add(x, r) t = LayerNormalization(y, b, b)",
            "the norm alone may read the sum, and it is an output of the model",
        ),
        ("s = Add(x, r) y = LayerNormalization(s, b, b)", UNKNOWN),
    ],
)
def test_skip_layer_normalization(text: str, reason: str):
    assert reasons(text, "SkipLayerNormalization") == [reason]


def test_skip_layer_normalization_of_a_broadcast_sum():
    text = "a = Relu(x) c = Relu(r) s = Add(a, c) y = LayerNormalization(s, b, b)"
    shapes: dict[str, tuple[int | str, ...]] = {"a": ("B", "S", 4), "c": (1, "S", 4)}
    told = "both sides of the sum must have one shape, and one is broadcast here"
    assert reasons(text, "SkipLayerNormalization", shapes=shapes) == [told]
    assert reasons(text, "SkipLayerNormalization", shapes={**shapes, "c": ("B", "S", 4)}) == [UNKNOWN]


def test_bias_gelu():
    assert reasons("s = Add(x, b) y = Gelu(s)", "BiasGelu") == [UNKNOWN]
    read_twice = "the Gelu alone may read the sum, and it has 2 readers"
    assert reasons("s = Add(x, b) y = Gelu(s) z = Relu(s)", "BiasGelu") == [read_twice]
    assert reasons("s = Add(x, r) y = Gelu(s)", "BiasGelu") == []  # a residual sum is no bias


def test_gemm():
    text = "a = Relu(x) p = MatMul(a, W) y = Add(p, b)"
    dynamic = "its input must have a fixed shape, and batch and sequence are dynamic here"
    assert reasons(text, "Gemm") == [dynamic]
    assert reasons(text, "Gemm", shapes={"a": ("B", "S", 4)}) == [dynamic]
    assert reasons(text, "Gemm", shapes={"a": (1, 8, 4)}) == [UNKNOWN]
    assert reasons("p = MatMul(x, r) y = Add(p, b)", "Gemm") == []  # no weights
    assert reasons("p = MatMul(x, W) y = Add(p, r)", "Gemm") == []  # no bias
    assert reasons("p = MatMul(x, W) y = Add(p, b) z = Relu(p)", "Gemm") == []  # read elsewhere


def test_equal_misses_are_counted():
    twice = "p = MatMul(x, W) q = Add(p, b) s = MatMul(q, W) y = Add(s, b)"
    told = "its input must have a fixed shape, and batch and sequence are dynamic here"
    assert missed(graph(twice))[0] == [Missed("Gemm", 2, told)]


def test_fused_operators_are_counted_and_others_are_not():
    text = "s = com.microsoft.SkipLayerNormalization(x, r, b, b) t = Relu(s) y = com.microsoft.BiasGelu(t, b)"
    found = graph(text)
    assert fired(found) == {0: {"SkipLayerNormalization": 1, "BiasGelu": 1}}
    gemm = graph("y = Gemm(W, W)")
    assert fired(gemm) == {}
    gemm.nodes[0].name = "node_linear/MatMulAddFusion/"
    gemm.places["node_linear/MatMulAddFusion/"] = Place(0, "any")
    assert fired(gemm) == {0: {"Gemm": 1}}


def test_nodes_of_unknown_origin_are_nobodys_fusions():
    found = graph("y = com.microsoft.BiasGelu(x, b) z = LayerNormalization(x, b, b)")
    found.places.clear()
    assert (fired(found), missed(found)) == ({}, {})
