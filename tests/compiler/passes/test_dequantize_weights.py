"""Int8 linear layers as ``DequantizeLinear`` of their weights: what they compute, what they share, and what is left alone."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from tests.compiler.passes.graphs import parsed, serialized
from tests.conftest import tiny_coda
from tests.exporting import export

from coda_compile.passes import operator_counts
from coda_compile.passes.dequantize_weights import DequantizeWeights
from coda_compile.precision import get_precision
from coda_models import CodaConfig
from coda_targets.routing import LAYER_TAG


def test_every_linear_layer_keeps_its_tag_and_name_and_shares_zero_points():
    model = tiny_coda("bert", CodaConfig(reduction=2))
    get_precision("int8").quantise(model, (), True)
    compiled = export(model, opset=20)
    before = [(n.outputs[0].name, n.metadata_props[LAYER_TAG]) for n in compiled.graph if n.op_type == "Int8Linear"]
    assert DequantizeWeights()(compiled).modified
    assert "ai.coda::Int8Linear" not in operator_counts(compiled)
    made = {n.outputs[0].name: n for n in compiled.graph}
    assert [(name, made[name].metadata_props[LAYER_TAG]) for name, _ in before] == before
    points = {value.name for value in compiled.graph.initializers.values() if "zero_point" in str(value.name)}
    assert points == {f"coda.zero_point.{width}" for width in (32, 48, 64)}
    again = serialized(compiled)
    assert not DequantizeWeights()(compiled).modified
    assert serialized(compiled) == again


def test_it_computes_the_product_of_dequantised_weights():
    text = """g (float[N, 2] x) => (float[N, 3] y)
        <uint8[2, 3] w = {128, 130, 0, 255, 128, 1}, float[3] s = {0.5, 1, 2}, float[3] b = {1, 2, 3}>
        { y = ai.coda.Int8Linear(x, w, s, b) }"""
    model = parsed(text)
    assert DequantizeWeights()(model).modified
    x = np.array([[1, 2], [0.5, -1]], np.float32)
    weight = (np.array([[128, 130, 0], [255, 128, 1]]) - 128.0) * [0.5, 1, 2]
    # onnx's own interpreter: onnxruntime would quantise x as well.
    (y,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weight + [1, 2, 3], rtol=1e-6)


def test_other_graphs_are_left_alone(raw: ir.Model, plain: Callable[[], ir.Model]):
    for model in (raw, plain()):
        before = serialized(model)
        assert not DequantizeWeights()(model).modified
        assert serialized(model) == before
