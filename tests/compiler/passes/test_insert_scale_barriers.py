"""Sums with rounded products, shielded where OpenVINO would move a scale behind them."""

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from tests.compiler.passes.test_fuse_attention import outputs
from tests.compiler.passes.test_lower_static_linears import static, texts
from tests.conftest import tiny_coda

from coda_compile.export import export
from coda_compile.passes import run_passes
from coda_compile.passes.insert_scale_barriers import InsertScaleBarriers
from coda_models import CodaConfig
from coda_targets.routing import LAYER_TAG

BEFORE = ("fold_constants", "eliminate_identities", "lower_static_linears")
AFTER = ("remove_unused", "lift_constants", "attach_functions")


# Adapter, attention and feed-forward; before its second norm a pre-norm layer reads what attention gives twice.
@pytest.mark.parametrize(("family", "layer"), [("bert", 3), ("roberta-prelayernorm", 2)])
def test_every_residual_of_a_rounded_product_is_shielded_and_nothing_else_changes(family: str, layer: int):
    model = static(family)
    exported = ir.to_proto(export(model, opset=20))
    results = []
    for names in ((), ("insert_scale_barriers",)):
        compiled = ir.from_proto(exported)
        reports = run_passes(compiled, (*BEFORE, *names, *AFTER))
        results.append(outputs(compiled, texts(model, 1)[0]))
    for plain, shielded in zip(*results, strict=True):
        np.testing.assert_array_equal(shielded, plain)
    assert reports[len(BEFORE)].operators == {"Clip": 2 * layer}
    clips = [node for node in compiled.graph if node.op_type == "Clip"]
    assert [node.metadata_props[LAYER_TAG] for node in clips] == ["0"] * layer + ["1"] * layer
    assert not InsertScaleBarriers()(compiled).modified


def test_sums_of_products_that_are_not_rounded_are_left_alone():
    compiled = export(tiny_coda("bert", CodaConfig(reduction=2)), opset=20)
    run_passes(compiled, BEFORE[:2])
    assert not InsertScaleBarriers()(compiled).modified


ROUNDED = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) m = MatMul(d, w) p = Add(m, b)"


@pytest.mark.parametrize(
    ("body", "shielded"),
    [
        (f"{ROUNDED} out = Add(p, y)", True),
        (f"{ROUNDED} out = Add(y, p)", True),
        (f"{ROUNDED} out = Add(p, b)", False),  # a second bias: no residual
        (f"{ROUNDED} t = Add(p, y) out = Mul(t, p)", False),  # others read the product
        ("m = MatMul(x, w) p = Add(m, b) out = Add(p, y)", False),
    ],
)
def test_what_is_a_residual_of_a_rounded_product(body: str, shielded: bool):
    model = ir.from_proto(
        onnx.parser.parse_model(
            f"""<ir_version: 10, opset_import: ["" : 20]>
            g (float[N, 2] x, float[N, 2] y) => (float[N, 2] out)
            <float s = {{0.5}}, uint8 z = {{128}}, float[2, 2] w = {{1.0, 2.0, 3.0, 4.0}}, float[2] b = {{1.0, 2.0}}>
            {{ {body} }}"""
        )
    )
    assert InsertScaleBarriers()(model).modified == shielded
    assert [node.op_type for node in model.graph].count("Clip") == shielded
