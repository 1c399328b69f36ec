"""int4: weights in four bits, multiplied by onnxruntime's own operator, verified as tightly as float32."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from tests.conftest import tiny_coda

from coda_compile import CompileOptions, compile
from coda_compile.precision.int4 import RECIPE, Int4Linear
from coda_compile.precision.layers import replace
from coda_compile.verify.reference_vectors import verify_bundle
from coda_models import CodaConfig, CodaModel


def quantise(model: CodaModel) -> None:
    """In place."""
    assert RECIPE.quantise is not None
    RECIPE.quantise(model, (), True)


def test_attention_and_feed_forward_are_quantised_and_nothing_else():
    model = tiny_coda("bert", CodaConfig(reduction=2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantise(model)
    quantised = tuple(name for name, module in model.named_modules() if isinstance(module, Int4Linear))
    assert len(quantised) == 12
    assert all(".block.attention." in name or ".block.feed_forward." in name for name in quantised)
    for name, tensor in model.state_dict().items():
        if not name.startswith(quantised):
            assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ("family", "config"), [("bert", CodaConfig(reduction=2)), ("mpnet", CodaConfig(reduction=1, attention="k_to_all"))]
)
@pytest.mark.parametrize("pack", [False, True])
def test_it_compiles_and_verifies(family: str, config: CodaConfig, pack: bool, tmp_path: Path):
    bundle = compile(tiny_coda(family, config), CompileOptions(precision="int4", pack=pack), output=tmp_path / "bundle")
    counts = bundle.variant.operators
    assert counts["com.microsoft::MatMulNBits"] == 12
    assert counts["ai.coda::AddGelu"] == 2  # biases are fused as in float32
    assert bundle.variant.minimum_onnxruntime == "1.21.1"
    model = onnx.load(str(bundle.model_path))
    bits = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.UINT8]
    assert len(bits) == 12
    if pack:
        assert counts["ai.coda::PackTokens"] > 0
    verify_bundle(bundle)


def test_the_first_token_alone_is_computed_where_nothing_else_is_read(tmp_path: Path):
    bundle = compile(
        tiny_coda("bert", CodaConfig(reduction=1)), CompileOptions(precision="int4"), output=tmp_path / "bundle"
    )
    passes = json.loads((bundle.folder / "report.json").read_text("utf-8"))["variants"]["cpu-int4"]["passes"]
    trimmed = next(one for one in passes if one["name"] == "trim_to_readout")
    assert trimmed["modified"]


def test_layers_of_any_width_are_taken():
    """The last block of 48 input channels is half a block."""
    layer = torch.nn.Linear(48, 5)
    given = torch.randn(3, 48)
    off = (Int4Linear(layer)(given) - layer(given)).abs().max()
    assert 0 < off < 0.2


def test_large_tables_are_quantised_to_eight_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replace, "_LARGE", 100 * 32)  # the tiny models' words, and not their positions
    bundle = compile(
        tiny_coda("bert", CodaConfig(reduction=2)), CompileOptions(precision="int4"), output=tmp_path / "bundle"
    )
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(str(bundle.model_path)).graph.initializer}
    assert kinds["model.embeddings.word_embeddings.weight"] == onnx.TensorProto.INT8
