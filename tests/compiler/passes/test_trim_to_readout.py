"""What is never read is not computed: which layers are trimmed, that nothing changes, and what is left alone."""

import numpy as np
import onnx_ir as ir
import pytest
from tests.compiler.passes.graphs import assert_not_here, inputs_of, outputs, serialized, why_declined
from tests.conftest import tiny_coda
from tests.exporting import export

from coda_compile.backends.cpu import BACKEND
from coda_compile.passes import pass_name, run_passes
from coda_compile.passes.trim_to_readout import TrimToReadout
from coda_models import CodaConfig

PASSES = BACKEND.passes()
NAMES = [pass_name(one) for one in PASSES]
BEFORE = PASSES[: NAMES.index("trim_to_readout")]

NO_ATTENTION = "no attention lies between the first token and what others read too"


def single_token(model: ir.Model) -> list[str]:
    """Operators that compute one token of each sequence."""
    return sorted(
        node.op_type
        for node in model.graph
        for value in node.outputs
        if value.shape is not None and len(value.shape) == 3 and value.shape[1] == 1 and node.op_type != "Unsqueeze"
    )


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("bert", CodaConfig(reduction=1)),
        ("mpnet", CodaConfig(reduction=1)),
        ("roberta-prelayernorm", CodaConfig(reduction=[2, 1], attention="k_to_all")),
        ("bert", CodaConfig(reduction=[2, 1], attention="k_to_all", stand_in=4, key_value_rank=6)),
    ],
)
def test_the_last_layer_computes_one_token_and_the_answer_is_the_same(family: str, config: CodaConfig):
    model = tiny_coda(family, config)
    exported = ir.to_proto(export(model, opset=20))
    feed = inputs_of(model)
    whole, trimmed = (ir.from_proto(exported) for _ in "ab")
    run_passes(whole, [one for one in PASSES if not isinstance(one, TrimToReadout)])
    reports = run_passes(trimmed, PASSES)
    assert next(report for report in reports if report.name == "trim_to_readout").modified
    alone = single_token(trimmed)
    assert len({"MultiHeadAttention", "CrossAttention"} & set(alone)) == 1
    assert {"AddNorm", "AddGelu", "MatMul", "AddAdapter"} <= set(alone)
    assert "AddGelu" not in single_token(whole)
    for a, b in zip(outputs(trimmed, feed), outputs(whole, feed), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1.0, np.abs(b).max()))


def test_a_second_run_changes_nothing():
    model = export(tiny_coda("bert", CodaConfig(reduction=1)), opset=20)
    run_passes(model, BEFORE)
    assert TrimToReadout()(model).fused == 1
    before = serialized(model)
    assert not TrimToReadout()(model).modified
    assert serialized(model) == before


def test_a_last_layer_that_routes_is_left_alone_and_says_why(raw: ir.Model):
    run_passes(raw, BEFORE)
    assert why_declined(TrimToReadout(), raw).reason == NO_ATTENTION


@pytest.mark.parametrize("config", [CodaConfig(reduction=1, pooling="mean"), CodaConfig(task="token-classification")])
def test_what_reads_every_token_is_left(config: CodaConfig):
    model = export(tiny_coda("bert", config), opset=20)
    run_passes(model, BEFORE)
    assert_not_here(TrimToReadout(), model)


ATTENTION = """
<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g (float[B, N, 8] x) => ({outputs})
<float[8, 8] w = {{{weights}}}, int64 zero = {{{index}}}>
{{
  q = MatMul(x, w)
  k = MatMul(x, w)
  v = MatMul(x, w)
  a = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v)
  y = Relu(a)
  {last}
}}
"""


def attention(
    outputs: str = "float[B, 8] z", index: int = 0, last: str = "z = Gather <axis = 1> (y, zero)"
) -> ir.Model:
    weights = ", ".join(str((i % 7 - 3) / 4) for i in range(64))
    model = ir.from_onnx_text(ATTENTION.format(weights=weights, outputs=outputs, index=index, last=last))
    for node in model.graph:
        if node.op_type != "Gather":
            node.outputs[0].shape = ir.Shape(["B", "N", 8])
    return model


def test_the_query_is_cut_and_keys_and_values_are_not():
    model, plain = attention(), attention()
    assert TrimToReadout()(model).modified
    cut = next(node for node in model.graph if node.op_type == "Slice")
    assert [user.outputs[0].name for user, _ in cut.outputs[0].uses()] == ["q"]
    feed = {"x": np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)}
    np.testing.assert_allclose(outputs(model, feed)[0], outputs(plain, feed)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        {"outputs": "float[B, 8] z, float[B, N, 8] y"},  # the state is an output too
        {"last": "z0 = Gather <axis = 1> (y, zero) s = ReduceSum <keepdims = 0> (y) z = Add(z0, s)"},
    ],
)
def test_a_state_that_others_read_is_left_alone_and_says_why(model: dict[str, str]):
    declined = why_declined(TrimToReadout(), attention(**model))
    assert (declined.reason, declined.value.name) == (NO_ATTENTION, "y")


def test_another_token_than_the_first_is_left():
    assert_not_here(TrimToReadout(), attention(index=1))
