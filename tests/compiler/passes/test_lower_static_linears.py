"""Linear layers with a static scale of activations: lowered once, with what they share, and verified on every form."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from tests.conftest import tiny_coda
from tests.exporting import export

from coda_compile import CompileOptions, compile
from coda_compile.backends import get_backend
from coda_compile.errors import CompileError, VerificationError
from coda_compile.passes import operator_counts, run_passes
from coda_compile.passes.eliminate_identities import EliminateIdentities
from coda_compile.passes.fold_constants import FoldConstants
from coda_compile.passes.fuse_attention import FuseAttention
from coda_compile.passes.fuse_projections import FuseProjections
from coda_compile.passes.lower_static_linears import LowerStaticLinears
from coda_compile.precision import get_precision
from coda_compile.precision.int8_static import Int8StaticLinear
from coda_compile.verify.against_torch import verify
from coda_compile.verify.cases import make_case
from coda_compile.verify.reference_vectors import verify_bundle
from coda_models import CodaConfig, CodaModel
from coda_targets.bundle import Arrays
from coda_targets.routing import LAYER_TAG

STATIC = "int8-static"


def texts(model: CodaModel, count: int = 4) -> list[Arrays]:
    return [make_case(model.signature, 1, 30 + i, ragged=False, seed=i).inputs for i in range(count)]


def static(family: str = "bert", config: CodaConfig | None = None) -> CodaModel:
    """A tiny model, calibrated."""
    model = tiny_coda(family, config or CodaConfig(reduction=2))
    given = [{name: torch.from_numpy(array) for name, array in text.items()} for text in texts(model)]
    get_precision(STATIC).quantise(model, given, True)
    return model


def test_every_linear_layer_is_lowered_once_and_keeps_its_tag_and_name():
    compiled = export(static(), opset=20)
    before = [n for n in compiled.graph if n.op_type == "Int8StaticLinear"]
    layers, outputs = [n.metadata_props[LAYER_TAG] for n in before], [n.outputs[0].name for n in before]
    assert LowerStaticLinears()(compiled).modified
    counts = operator_counts(compiled)
    assert "ai.coda::Int8StaticLinear" not in counts
    # Query, key and value read the same tokens, and in k-to-k so does nothing else; adapter and router read them all.
    assert counts["QuantizeLinear"] == 2 * 6
    assert counts["DequantizeLinear"] == counts["QuantizeLinear"] + 2 * 8
    wide = {n.outputs[0] for n in compiled.graph if n.op_type == "DequantizeLinear"}
    products = [n for n in compiled.graph if n.op_type == "MatMul" and n.inputs[1] in wide]
    assert [n.metadata_props[LAYER_TAG] for n in products] == layers == ["0"] * 8 + ["1"] * 8
    assert [user.outputs[0].name for n in products for user, _ in n.outputs[0].uses()] == outputs
    assert not LowerStaticLinears()(compiled).modified


def test_other_graphs_are_left_alone(raw: ir.Model):
    assert not LowerStaticLinears()(raw).modified


def test_projections_that_quantise_differently_stay_apart():
    model = static()
    attention = next(iter(model.coda_layers())).block.attention
    attention.key.x_scale = attention.key.x_scale * 2
    compiled = export(model, opset=20)
    run_passes(compiled, (FoldConstants(), EliminateIdentities(), FuseAttention()))
    result = FuseProjections()(compiled)
    assert result.fused == 1  # the other layer's
    assert result.declined == {"the projections quantise their input differently": 1}
    assert operator_counts(compiled)["ai.coda::Int8StaticLinear"] == 16 - 2
    LowerStaticLinears()(compiled)
    assert operator_counts(compiled)["QuantizeLinear"] == 2 * 6 + 1


@pytest.mark.parametrize(
    ("family", "config", "products"),
    [
        ("bert", CodaConfig(reduction=2), 12),
        ("mpnet", CodaConfig(reduction="7/2", attention="k_to_all"), 14),
        ("roberta-prelayernorm", CodaConfig(reduction=1), 13),
        ("distilbert", CodaConfig(reduction=("2", "1"), pooling="mean"), 12),
    ],
)
def test_it_compiles_and_verifies(family: str, config: CodaConfig, products: int, tmp_path: Path):
    model = tiny_coda(family, config)
    bundle = compile(model, CompileOptions(precision=STATIC, calibration=texts(model)), output=tmp_path / "bundle")
    assert bundle.variant.precision == STATIC
    counts = Counter(bundle.variant.operators)
    assert counts["DequantizeLinear"] - counts["QuantizeLinear"] == products
    assert not any(name.startswith("ai.coda::Int8") for name in counts)
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(str(bundle.model_path)).graph.initializer}
    assert kinds["model.layers.0.block.feed_forward.up.weight"] == onnx.TensorProto.INT8
    verify_bundle(bundle)
    assert not any(isinstance(module, Int8StaticLinear) for module in model.modules())  # the caller's stays as it is


def test_rows_are_packed(tmp_path: Path):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    bundle = compile(
        model, CompileOptions(precision=STATIC, calibration=texts(model), pack=True), output=tmp_path / "bundle"
    )
    assert bundle.variant.operators["ai.coda::PackTokens"] > 0


@pytest.mark.parametrize("part", ["block.attention.key", "block.feed_forward.down", "adapter.up"])
def test_one_level_of_one_weight_is_found(tmp_path: Path, part: str):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    bundle = compile(model, CompileOptions(precision=STATIC, calibration=texts(model)), output=tmp_path / "bundle")
    proto = onnx.load(str(bundle.model_path))
    tensor = next(tensor for tensor in proto.graph.initializer if f"layers.1.{part}.weight" in tensor.name)
    levels = numpy_helper.to_array(tensor).copy()
    at = 32 if "key" in part else 0  # behind the queries'
    levels[:, at] = np.where(levels[:, at] < 127, levels[:, at] + 1, 126)
    tensor.CopyFrom(numpy_helper.from_array(levels, tensor.name))
    onnx.save(proto, str(tmp_path / "wrong.onnx"))
    verify(static(), bundle.model_path, get_backend("cpu"))
    with pytest.raises(VerificationError, match="differ by"):
        verify(static(), tmp_path / "wrong.onnx", get_backend("cpu"))


def test_another_step_is_found(tmp_path: Path):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    bundle = compile(model, CompileOptions(precision=STATIC, calibration=texts(model)), output=tmp_path / "bundle")
    other = static()
    product = list(other.coda_layers())[1].block.feed_forward.down
    product.x_scale = product.x_scale * 1.01
    with pytest.raises(VerificationError, match="differ by"):
        verify(other, bundle.model_path, get_backend("cpu"))


def test_the_range_of_what_was_multiplied_becomes_the_levels():
    model, seen = tiny_coda("bert", CodaConfig(reduction=2)), list[torch.Tensor]()
    down = list(model.coda_layers())[1].block.feed_forward.down
    down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        for text in texts(model):
            model(**{name: torch.from_numpy(array) for name, array in text.items()})
    low, high = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
    product = list(static().coda_layers())[1].block.feed_forward.down
    # What came before it is rounded in neither: ranges are taken from the model as it was.
    assert float(product.x_scale) == pytest.approx((high - low) / 255, rel=1e-5)
    assert int(product.x_zero_point) == round(-low / float(product.x_scale))


def test_products_that_no_text_reaches_are_named():
    model = tiny_coda()
    with pytest.raises(CompileError, match=r"^layers\.0\.block\.attention\.query is given nothing by the texts"):
        get_precision(STATIC).quantise(model, (), True)


def test_numbers_that_are_not_finite_are_named():
    model = tiny_coda()
    given = [{name: torch.from_numpy(array) for name, array in text.items()} for text in texts(model, 1)]
    with torch.no_grad():
        next(iter(model.coda_layers())).block.feed_forward.up.bias[0] = torch.inf
    sentence = r"^layers\.0\.block\.feed_forward\.down is given numbers that are not finite by the texts"
    with pytest.raises(CompileError, match=sentence):
        get_precision(STATIC).quantise(model, given, True)
