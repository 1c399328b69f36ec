"""GELU with what stands before it: on real graphs in float32 and in eight bits, and what is left alone."""

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from tests.compiler.passes.test_fuse_attention import BEFORE, outputs
from tests.conftest import tiny_coda

from coda_compile.export import export
from coda_compile.passes import run_passes
from coda_compile.passes.fuse_gelus import FuseGelus
from coda_compile.precision import get_precision
from coda_models import CodaConfig
from coda_targets.routing import LAYER_TAG, ROLE_TAG


@pytest.mark.parametrize(
    ("precision", "changed"),
    [
        ("fp32", {"Add": -2, "Gelu": -2, "ai.coda::AddGelu": 2}),
        ("int8", {"Gelu": -2, "ai.coda::Int8Linear": -2, "ai.coda::Int8LinearGelu": 2}),
    ],
)
def test_every_feed_forward_is_fused(precision: str, changed: dict[str, int]):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    if precision == "int8":
        get_precision(precision).quantise(model, (), True)
    exported = ir.to_proto(export(model, opset=20))
    ids = np.random.default_rng(0).integers(4, 90, (3, 9))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    results = []
    for names in ((), ("fuse_gelus",)):
        compiled = ir.from_proto(exported)
        reports = run_passes(compiled, (*BEFORE, *names, "remove_unused", "attach_functions"))
        results.append(outputs(compiled, feed))
    for plain, fused in zip(*results, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=0, atol=2e-5)
    assert reports[len(BEFORE)].operators == changed
    nodes = [node for node in compiled.graph if node.op_type in ("AddGelu", "Int8LinearGelu")]
    assert [(n.metadata_props[LAYER_TAG], n.metadata_props[ROLE_TAG]) for n in nodes] == [
        ("0", "feed_forward"),
        ("1", "feed_forward"),
    ]
    assert not FuseGelus()(compiled).modified


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('s = Add(x, b) out = Gelu <approximate = "tanh"> (s)', "the one by tanh"),
        ("s = Add(x, v) out = Gelu(s)", "no sum with a constant bias"),  # v may change
        ("s = Add(x, b) g = Gelu(s) out = Add(g, s)", "no sum with a constant bias, or others read"),
        ("out = Gelu(x)", "no sum with a constant bias"),
    ],
)
def test_what_is_left_alone_says_why(body: str, reason: str):
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[B, S, 4] x, float[4] v) => (float[B, S, 4] out) <float[4] b = {{1.0, 2.0, 3.0, 4.0}}> {{ {body} }}"""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    step = FuseGelus()
    assert not step(model).modified
    assert [reason in told for told in step.declined] == [True]
