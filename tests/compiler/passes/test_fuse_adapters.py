"""Bottlenecks and maps of low rank with their residual sums in one operator: on real graphs of every kind, and what is left alone."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.compiler.passes.graphs import assert_not_here, compare, outputs, parsed, why_declined
from tests.conftest import tiny_coda
from torch import nn

from coda_compile.passes import run_passes
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.fuse_adapters import FuseAdapters
from coda_compile.passes.fuse_norms import FuseNorms
from coda_compile.passes.upstream import RemoveUnused
from coda_compile.precision import get_precision
from coda_models import CodaConfig, CodaModel
from coda_models.layers.bottleneck import Bottleneck, Bottlenecks
from coda_models.learned_parts import BottleneckForm
from coda_targets.routing import LAYER_TAG, ROLE_TAG


def beside(reduction: int, precision: str = "fp32") -> CodaModel:
    """Adapters beside layers."""
    model = tiny_coda("bert", CodaConfig(reduction=reduction))
    if precision != "fp32":
        get_precision(precision).quantise(model, (), True)
    return model


def stand_ins(family: str, precision: str = "fp32") -> CodaModel:
    """In the place of adapters."""
    model = tiny_coda(family, CodaConfig(reduction=2, stand_in=4, bottleneck=0))
    if precision != "fp32":
        get_precision(precision).quantise(model, (), True)
    return model


def serial(activation: str) -> CodaModel:
    """One behind every sublayer."""
    model = tiny_coda("bert", CodaConfig(reduction=1))
    torch.manual_seed(0)
    for layer in model.coda_layers():
        layer.adapter = None
        for place in ("after_attention", "after_feed_forward"):
            one = Bottleneck(32, BottleneckForm(width=8, activation=activation))
            nn.init.normal_(one.up.weight, std=0.2)
            setattr(layer.block, place, Bottlenecks([one]))
    return model.eval()


@pytest.mark.parametrize(
    ("model", "operator", "count"),
    [
        (lambda: beside(2), "AddAdapter", 2),
        (lambda: beside(1), "AddAdapter", 2),
        (lambda: beside(2, "int8"), "Int8AddAdapter", 2),
        (lambda: beside(1, "int8"), "Int8AddAdapter", 2),
        (lambda: stand_ins("bert"), "AddLowRank", 2),
        (lambda: stand_ins("roberta-prelayernorm"), "AddLowRank", 2),
        (lambda: stand_ins("bert", "int8"), "Int8AddLowRank", 2),
        (lambda: serial("relu"), "AddAdapter", 4),
        (lambda: serial("silu"), "AddSwishAdapter", 4),
    ],
)
def test_every_adapter_is_one_operator_and_computes_the_same(model: Any, operator: str, count: int):
    compiled, _ = compare(model(), FuseAdapters(), after=(FuseNorms(), RemoveUnused(), AttachFunctions()))
    nodes = [node for node in compiled.graph if node.op_type == operator]
    assert len(nodes) == count
    role = "stand_in" if operator.endswith("LowRank") else "adapter"
    assert {(node.metadata_props[LAYER_TAG], node.metadata_props[ROLE_TAG]) for node in nodes} == {
        ("0", role),
        ("1", role),
    }
    assert "Adapter" not in {node.op_type for node in compiled.graph}
    assert not FuseAdapters()(compiled).modified


def graph(body: str, x: str = "B, S, 4", residual: str = "B, S, 4", middle: int = 2) -> ir.Model:
    thin, wide = (", ".join(["0.5"] * n) for n in (middle, 4 * middle))
    text = f"""g (float[{x}] x, float[{residual}] r, float[{middle}] v) => (float[B, S, 4] out)
        <float[4, {middle}] d = {{{wide}}}, float[{middle}] e = {{{thin}}}, float[{middle}, 4] u = {{{wide}}},
         float[4] f = {{0.1, 0.2, 0.3, 0.4}}> {{ {body} }}"""
    return parsed(text, shapes=True)


RELU = "a = MatMul(x, d) b = Add(a, e) h = Relu(b) c = MatMul(h, u) g = Add(f, c) out = Add(g, r)"
SWISH = "a = MatMul(x, d) b = Add(e, a) s = Sigmoid(b) h = Mul(s, b) c = MatMul(h, u) g = Add(c, f) out = Add(r, g)"

LOW_RANK = "a = MatMul(x, d) c = MatMul(a, u) g = Add(c, f) out = Add(r, g)"


@pytest.mark.parametrize(
    ("body", "operator"), [(RELU, "AddAdapter"), (SWISH, "AddSwishAdapter"), (LOW_RANK, "AddLowRank")]
)
def test_sums_are_taken_in_either_order(body: str, operator: str):
    rng = np.random.default_rng(1)
    feed = {name: rng.normal(size=(2, 3, 4)).astype(np.float32) for name in "xr"}
    feed["v"] = np.zeros(2, np.float32)
    (wanted,) = outputs(graph(body), feed)
    model = graph(body)
    run_passes(model, (FuseAdapters(), AttachFunctions()))
    assert [node.op_type for node in model.graph] == [operator]
    np.testing.assert_allclose(outputs(model, feed)[0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "reason", "value"),
    [
        (graph(RELU, residual="4"), "its residual has another shape than what the adapter reads", "r"),
        (
            graph(RELU, middle=4),
            "its bottleneck is as wide as what it reads, or wider, as in a feed-forward",
            "d",
        ),
        (
            graph(LOW_RANK, middle=4),
            "its bottleneck is as wide as what it reads, or wider, as in a feed-forward",
            "d",
        ),
    ],
)
def test_what_does_not_fit_is_left_alone_and_says_why(model: ir.Model, reason: str, value: str):
    declined = why_declined(FuseAdapters(), model)
    assert (declined.reason, declined.value.name) == (reason, value)


@pytest.mark.parametrize(
    "body",
    [
        RELU.replace("Add(a, e)", "Add(a, v)"),  # v may change
        RELU.replace("Relu(b)", "Tanh(b)"),
        RELU.replace("Add(g, r)", "Add(g, h2) h3 = Relu(g)").replace("out", "h2 = Add(r, r) out"),
        SWISH.replace("Sigmoid(b)", "Sigmoid(a)"),  # of something else
        SWISH.replace("out = Add(r, g)", "q = Add(r, g) out = Add(q, q) t = Neg(s)"),
        LOW_RANK + " t = Neg(a)",  # others read what is between the two products
        LOW_RANK.replace("g = Add(c, f)", "g = Add(c, r)"),  # no bias
    ],
)
def test_what_is_no_adapter_is_left_alone(body: str):
    assert_not_here(FuseAdapters(), graph(body))


def test_a_stand_in_may_be_as_wide_as_its_layer():
    model = tiny_coda("bert", CodaConfig(reduction=2, stand_in=32, bottleneck=0))
    compiled, _ = compare(model, FuseAdapters(), atol=1e-5)
    assert [node.op_type for node in compiled.graph].count("AddLowRank") == 2
