"""Barriers before residual sums of quantised linear layers, where OpenVINO would move a scale behind them."""

import pytest
from tests.compiler.passes.graphs import compare, parsed
from tests.compiler.passes.test_lower_static_linears import static, texts
from tests.conftest import tiny_coda
from tests.exporting import export

from coda_compile.passes import run_passes
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.eliminate_identities import EliminateIdentities
from coda_compile.passes.fold_constants import FoldConstants
from coda_compile.passes.insert_scale_barriers import InsertScaleBarriers
from coda_compile.passes.lower_static_linears import LowerStaticLinears
from coda_compile.passes.upstream import LiftConstants, RemoveUnused
from coda_models import CodaConfig
from coda_targets.routing import LAYER_TAG

BEFORE = (FoldConstants(), EliminateIdentities(), LowerStaticLinears())
AFTER = (RemoveUnused(), LiftConstants(), AttachFunctions())


# Adapter, attention and feed-forward; before its second norm a pre-norm layer reads what attention gives twice.
@pytest.mark.parametrize(("family", "layer"), [("bert", 3), ("roberta-prelayernorm", 2)])
def test_every_residual_of_a_quantised_layer_has_one_and_nothing_else_changes(family: str, layer: int):
    model = static(family)
    compiled, report = compare(
        model, InsertScaleBarriers(), before=BEFORE, after=AFTER, feed=texts(model, 1)[0], atol=0
    )
    assert report.operators == {"Clip": 2 * layer}
    clips = [node for node in compiled.graph if node.op_type == "Clip"]
    assert [node.metadata_props[LAYER_TAG] for node in clips] == ["0"] * layer + ["1"] * layer
    assert not InsertScaleBarriers()(compiled).modified


def test_sums_of_layers_that_are_not_quantised_are_left_alone():
    compiled = export(tiny_coda("bert", CodaConfig(reduction=2)), opset=20)
    run_passes(compiled, BEFORE[:2])
    assert not InsertScaleBarriers()(compiled).modified


QUANTIZED = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) m = MatMul(d, w) p = Add(m, b)"


@pytest.mark.parametrize(
    ("body", "barrier"),
    [
        (f"{QUANTIZED} out = Add(p, y)", True),
        (f"{QUANTIZED} out = Add(y, p)", True),
        (f"{QUANTIZED} out = Add(p, b)", False),  # a second bias: no residual
        (f"{QUANTIZED} t = Add(p, y) out = Mul(t, p)", False),  # others read the product
        ("m = MatMul(x, w) p = Add(m, b) out = Add(p, y)", False),
    ],
)
def test_what_is_a_residual_of_a_quantised_layer(body: str, barrier: bool):
    model = parsed(f"""g (float[N, 2] x, float[N, 2] y) => (float[N, 2] out)
        <float s = {{0.5}}, uint8 z = {{128}}, float[2, 2] w = {{1.0, 2.0, 3.0, 4.0}}, float[2] b = {{1.0, 2.0}}>
        {{ {body} }}""")
    assert InsertScaleBarriers()(model).modified == barrier
    assert [node.op_type for node in model.graph].count("Clip") == barrier
