"""Bottlenecks with their residual sums in one operator: on real graphs of every kind, and what is left alone."""

from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from tests.compiler.passes.test_fuse_attention import BEFORE, outputs
from tests.conftest import tiny_coda
from torch import nn

from coda_compile.export import export
from coda_compile.passes import run_passes
from coda_compile.passes.fuse_adapters import FuseAdapters
from coda_compile.precision import get_precision
from coda_models import CodaConfig, CodaModel
from coda_models.layers.bottleneck import Bottleneck, Bottlenecks, Placement
from coda_targets.routing import LAYER_TAG, ROLE_TAG


def beside(reduction: int, precision: str = "fp32") -> CodaModel:
    """Adapters beside layers."""
    model = tiny_coda("bert", CodaConfig(reduction=reduction))
    if precision != "fp32":
        get_precision(precision).quantise(model, (), True)
    return model


def serial(activation: Any) -> CodaModel:
    """One behind every sublayer."""
    model = tiny_coda("bert", CodaConfig(reduction=1))
    torch.manual_seed(0)
    for layer in model.coda_layers():
        layer.adapter = None
        for place in ("after_attention", "after_feed_forward"):
            one = Bottleneck(nn.Linear(32, 8), activation, nn.Linear(8, 32), Placement())
            setattr(layer.block, place, Bottlenecks([one]))
    return model.eval()


@pytest.mark.parametrize(
    ("model", "operator", "count"),
    [
        (lambda: beside(2), "AddAdapter", 2),
        (lambda: beside(1), "AddAdapter", 2),
        (lambda: beside(2, "int8"), "Int8AddAdapter", 2),
        (lambda: beside(1, "int8"), "Int8AddAdapter", 2),
        (lambda: serial(nn.ReLU()), "AddAdapter", 4),
        (lambda: serial(nn.functional.silu), "AddSwishAdapter", 4),
    ],
)
def test_every_adapter_is_one_operator_and_computes_the_same(model: Any, operator: str, count: int):
    made = model()
    exported = ir.to_proto(export(made, opset=20))
    ids = np.random.default_rng(0).integers(4, 90, (3, 9))
    every = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    results = []
    for names in ((), ("fuse_adapters",)):
        compiled = ir.from_proto(exported)
        run_passes(compiled, (*BEFORE, *names, "fuse_norms", "remove_unused", "attach_functions"))
        results.append(outputs(compiled, {name: every[name] for name in made.input_names}))
    for plain, fused in zip(*results, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=0, atol=1e-6)
    nodes = [node for node in compiled.graph if node.op_type == operator]
    assert len(nodes) == count
    assert {(node.metadata_props[LAYER_TAG], node.metadata_props[ROLE_TAG]) for node in nodes} == {
        ("0", "adapter"),
        ("1", "adapter"),
    }
    assert "Adapter" not in {node.op_type for node in compiled.graph}
    again = FuseAdapters()
    assert not again(compiled).modified


def graph(body: str, x: str = "B, S, 4", residual: str = "B, S, 4", middle: int = 2) -> ir.Model:
    thin, wide = (", ".join(["0.5"] * n) for n in (middle, 4 * middle))
    text = f"""<ir_version: 10, opset_import: ["" : 20, "ai.coda" : 1]>
        g (float[{x}] x, float[{residual}] r, float[{middle}] v) => (float[B, S, 4] out)
        <float[4, {middle}] d = {{{wide}}}, float[{middle}] e = {{{thin}}}, float[{middle}, 4] u = {{{wide}}},
         float[4] f = {{0.1, 0.2, 0.3, 0.4}}> {{ {body} }}"""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    model.graph.name = "g"
    return model


RELU = "a = MatMul(x, d) b = Add(a, e) h = Relu(b) c = MatMul(h, u) g = Add(f, c) out = Add(g, r)"
SWISH = "a = MatMul(x, d) b = Add(e, a) s = Sigmoid(b) h = Mul(s, b) c = MatMul(h, u) g = Add(c, f) out = Add(r, g)"


@pytest.mark.parametrize(("body", "operator"), [(RELU, "AddAdapter"), (SWISH, "AddSwishAdapter")])
def test_sums_are_taken_in_either_order(body: str, operator: str):
    rng = np.random.default_rng(1)
    feed = {name: rng.normal(size=(2, 3, 4)).astype(np.float32) for name in "xr"}
    feed["v"] = np.zeros(2, np.float32)
    (wanted,) = outputs(graph(body), feed)
    model = graph(body)
    run_passes(model, ("fuse_adapters", "attach_functions"))
    assert [node.op_type for node in model.graph] == [operator]
    np.testing.assert_allclose(outputs(model, feed)[0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (graph(RELU, residual="4"), "another shape"),
        (graph(RELU, middle=4), "as wide as what it reads, or wider"),
        (graph(RELU.replace("Add(a, e)", "Add(a, v)")), None),  # v may change
        (graph(RELU.replace("Relu(b)", "Tanh(b)")), None),
        (graph(RELU.replace("Add(g, r)", "Add(g, h2) h3 = Relu(g)").replace("out", "h2 = Add(r, r) out")), None),
        (graph(SWISH.replace("Sigmoid(b)", "Sigmoid(a)")), None),  # of something else
        (graph(SWISH.replace("out = Add(r, g)", "q = Add(r, g) out = Add(q, q) t = Neg(s)")), None),
    ],
)
def test_what_is_no_adapter_is_left_alone(model: ir.Model, reason: str | None):
    before = [node.op_type for node in model.graph]
    step = FuseAdapters()
    assert not step(model).modified
    assert [node.op_type for node in model.graph] == before
    assert [reason in told for told in step.declined] == ([True] if reason else [])
