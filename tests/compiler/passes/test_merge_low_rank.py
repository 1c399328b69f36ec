"""LoRA's branches merged: on graphs of both torch exporters, on every form that a sum may have, and where it must not."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes import common
from tests.compiler.passes.graphs import BEFORE, assert_not_here, outputs, why_declined
from tests.conftest import tiny_coda
from tests.exporting import export
from torch import Tensor, nn

from coda_compile import compile
from coda_compile.passes import operator_counts, run_passes
from coda_compile.passes.fusion import FusionResult
from coda_compile.passes.merge_low_rank import MergeLowRank
from coda_models import CodaConfig

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'


class LoraLinear(nn.Module):
    """A linear layer with an unmerged low-rank update beside it."""

    def __init__(self, base: nn.Linear, rank: int = 2, scale: float = 0.5) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.in_features, self.out_features = base.in_features, base.out_features
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.up(self.down(x)) * self.scale
        return y


def exported(model: nn.Module, x: Tensor, *, dynamo: bool) -> ir.Model:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(), (x,), None if dynamo else buffer, dynamo=dynamo, opset_version=20, verbose=False
        )
    if program is not None:
        program.optimize()
        return program.model
    return ir.from_proto(onnx.load_from_string(buffer.getvalue()))


def parsed(body: str, **weights: tuple[int, ...]) -> ir.Model:
    """A graph ``x: [2, 3, 4] -> y`` with random weights of the given shapes."""
    model = ir.from_proto(onnx.parser.parse_model(f"{HEADER} agraph (float[2,3,4] x) => (float[2,3,5] y) {{ {body} }}"))
    random = np.random.default_rng(0)
    for name, shape in weights.items():
        value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(random.standard_normal(shape).astype(np.float32), name=name)
        value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
    return model


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    (y,) = outputs(model, {str(model.graph.inputs[0].name): x})
    return y


def merged(model: ir.Model) -> FusionResult:
    """Run the pass, and see that it changed no result and that a second run changes nothing."""
    shape = [int(d) for d in model.graph.inputs[0].shape or ()]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    before = run(model, x)
    result = MergeLowRank()(model)
    common.RemoveUnusedNodesPass()(model)
    np.testing.assert_allclose(run(model, x), before, rtol=1e-5, atol=1e-5)
    if result.modified:
        assert not MergeLowRank()(model).modified
    return result


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 8), (3, 8)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_both_exporters(dynamo: bool, shape: tuple[int, ...], bias: bool):
    torch.manual_seed(0)
    model = exported(LoraLinear(nn.Linear(8, 6, bias=bias)), torch.randn(shape), dynamo=dynamo)
    common.CommonSubexpressionEliminationPass()(model)
    assert not merged(model).declined
    counts = operator_counts(model)
    assert counts["MatMul"] + counts["Gemm"] == 1
    assert counts["Mul"] == 0


FORMS = {
    "scaled outside": "a = MatMul(x, A) b = MatMul(a, B) c = Mul(b, s) w = MatMul(x, W) y = Add(w, c)",
    "scaled inside": "a = MatMul(x, A) c = Mul(s, a) b = MatMul(c, B) w = MatMul(x, W) y = Add(b, w)",
    "divided": "a = MatMul(x, A) b = MatMul(a, B) c = Div(b, s) w = MatMul(x, W) y = Add(w, c)",
    "not scaled": "a = MatMul(x, A) b = MatMul(a, B) w = MatMul(x, W) y = Add(w, b)",
    "biased": "a = MatMul(x, A) b = MatMul(a, B) w = MatMul(x, W) z = Add(d, w) y = Add(z, b)",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str):
    body = FORMS[form]
    shapes = {"A": (4, 2), "B": (2, 5), "W": (4, 5), "s": (), "d": (5,)}
    used = {name: shape for name, shape in shapes.items() if f"({name}," in body or f" {name})" in body}
    model = parsed(body, **used)
    assert not merged(model).declined
    assert operator_counts(model)["MatMul"] == 1


def test_two_branches_on_one_weight():
    model = parsed(
        "a = MatMul(x, A) b = MatMul(a, B) w = MatMul(x, W) y1 = Add(w, b) c = MatMul(x, C) e = MatMul(c, E) "
        "y = Add(y1, e)",
        A=(4, 2),
        B=(2, 5),
        C=(4, 1),
        E=(1, 5),
        W=(4, 5),
    )
    assert not merged(model).declined
    assert operator_counts(model) == {"MatMul": 1}


def test_weight_that_others_read_stays_as_it_is():
    model = parsed(
        "a = MatMul(x, A) b = MatMul(a, B) w = MatMul(x, W) z = Add(w, b) o = MatMul(x, W) r = Relu(o) y = Add(z, r)",
        A=(4, 2),
        B=(2, 5),
        W=(4, 5),
    )
    merged(model)
    assert operator_counts(model) == {"MatMul": 2, "Relu": 1, "Add": 1}


NO_LINEAR = "what it is added to is no linear layer that it alone reads"
BRANCH = "a = MatMul(x, A) b = MatMul(a, B) "
DECLINED = {
    "r = Relu(x) w = MatMul(r, W) y = Add(w, b)": ("the branch reads another value than the linear layer", "x"),
    "w = MatMul(x, W) z = Add(w, b) y = Mul(z, b)": ("others read a part of the branch too", "b"),
    "w = MatMul(x, W) z = Add(w, b) y = Mul(z, w)": (NO_LINEAR, "w"),
    "w = MatMul(x, W) r = Relu(w) y = Add(r, b)": (NO_LINEAR, "r"),
    "w = MatMul(x, V) y = Add(w, b)": ("the branch has another shape than the weight", "V"),
}


@pytest.mark.parametrize("body", DECLINED)
def test_declines_and_says_why(body: str):
    shapes = {"A": (4, 2), "B": (2, 5), "W": (4, 5), "V": (4, 1)}
    body, (reason, value) = BRANCH + body, DECLINED[body]
    model = parsed(body, **{name: shape for name, shape in shapes.items() if f" {name})" in body})
    declined = why_declined(MergeLowRank(), model)
    assert (declined.reason, declined.value.name) == (reason, value)


@pytest.mark.parametrize(
    "body",
    [
        "a = MatMul(x, A) r = Relu(a) b = MatMul(r, B) w = MatMul(x, W) y = Add(w, b)",  # an adapter: not linear
        "a = MatMul(x, A) b = MatMul(a, B) y = Add(b, D)",  # no product beside it but a vector
    ],
)
def test_nothing_that_looks_like_a_branch(body: str):
    shapes = {"A": (4, 2), "B": (2, 5), "W": (4, 5), "D": (5,)}
    model = parsed(body, **{name: shape for name, shape in shapes.items() if f" {name})" in body})
    assert operator_counts(model) == operator_counts(parsed(body))
    merged(model)
    assert operator_counts(model) == operator_counts(parsed(body))


@settings(deadline=None, max_examples=30)
@given(
    inputs=st.integers(1, 6),
    rank=st.integers(1, 4),
    outputs=st.integers(1, 6),
    scale=st.floats(-4, 4, width=32),
    seed=st.integers(0, 99),
)
def test_any_size_and_scale(inputs: int, rank: int, outputs: int, scale: float, seed: int):
    random = np.random.default_rng(seed)
    text = f"""{HEADER} agraph (float[2,{inputs}] x) => (float[2,{outputs}] y) {{
        a = MatMul(x, A) b = MatMul(a, B) c = Mul(b, s) w = Gemm <transB = 1> (x, W, d) y = Add(c, w) }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    arrays = {"A": random.standard_normal((inputs, rank)), "B": random.standard_normal((rank, outputs))}
    arrays |= {"W": random.standard_normal((outputs, inputs)), "d": random.standard_normal(outputs)}
    for name, array in {**arrays, "s": np.array([scale])}.items():
        value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array.astype(np.float32), name=name)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
    assert not merged(model).declined
    assert operator_counts(model) == {"Gemm": 1}


@pytest.mark.parametrize("reduction", [1, 2])
def test_lora_in_a_model_costs_nothing(reduction: int, tmp_path: Path):
    plain = compile(tiny_coda("bert", CodaConfig(reduction=reduction)), output=tmp_path / "plain")
    adapted = tiny_coda("bert", CodaConfig(reduction=reduction))
    for layer in adapted.coda_layers():
        attention = layer.block.attention
        for name, module in list(attention.named_children()):
            if isinstance(module, nn.Linear):
                setattr(attention, name, LoraLinear(module))
    bundle = compile(adapted, output=tmp_path / "adapted")
    assert bundle.variant.operators == plain.variant.operators


@pytest.mark.parametrize("family", ["bert", "roberta-prelayernorm"])
def test_stand_ins_and_thin_keys_are_no_branches(family: str):
    config = CodaConfig(reduction=2, attention="k_to_all", stand_in=4, key_value_rank=6)
    model = export(tiny_coda(family, config), opset=20)
    run_passes(model, BEFORE)
    assert_not_here(MergeLowRank(), model)


def test_graphs_without_it_are_left_alone(raw: ir.Model, plain: Callable[[], ir.Model]):
    for model in (raw, plain()):
        assert_not_here(MergeLowRank(), model)
