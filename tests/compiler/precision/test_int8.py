"""int8: what is quantised and what is not, compiled and verified as tightly as float32."""

import sys
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tests.conftest import tiny_coda

from coda_compile import CompileOptions, compile
from coda_compile.backends import get_backend
from coda_compile.cli.main import main
from coda_compile.errors import CompileError, VerificationError
from coda_compile.precision.int8 import RECIPE, Int8Linear
from coda_compile.precision.layers import replace
from coda_compile.precision.layers.embedding import Int8Embedding
from coda_compile.verify.against_torch import verify
from coda_models import CodaConfig, CodaModel, save
from coda_targets import Bundle
from coda_targets.routing import RoutingProbe


def quantise(model: CodaModel, adapters: bool = True) -> None:
    """In place."""
    assert RECIPE.quantise is not None
    RECIPE.quantise(model, (), adapters)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny BERT at r = 2 in int8."""
    return compile(
        tiny_coda("bert", CodaConfig(reduction=2)),
        CompileOptions(precision="int8"),
        output=tmp_path_factory.mktemp("int8") / "bundle",
    )


@pytest.mark.parametrize("adapters", [True, False])
def test_attention_feed_forward_and_adapters_are_quantised_and_nothing_else(adapters: bool):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantise(model, adapters)
    quantised = {name for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    parts = (
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.out",
        "feed_forward.up",
        "feed_forward.down",
    )
    beside = ("adapter.down", "adapter.up") if adapters else ()
    assert quantised == {f"layers.{i}.{part}" for i in (0, 1) for part in (*(f"block.{p}" for p in parts), *beside)}
    for name, tensor in model.state_dict().items():
        if not name.startswith(tuple(quantised)):
            assert torch.equal(tensor, before[name]), name


def test_stand_ins_and_thin_keys_are_quantised_where_a_layer_routes():
    config = CodaConfig(reduction=(1, 2), attention="k_to_all", stand_in=4, key_value_rank=6)
    model = tiny_coda("bert", config)
    quantise(model)
    quantised = {name for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    thin = {f"layers.1.{part}.{one}" for part in ("stand_in", "key_value") for one in ("down", "up")}
    assert {name for name in quantised if "stand_in" in name or "key_value" in name} == thin


def test_the_bundle_says_so_and_is_smaller(quantised: Bundle, compiled: Bundle):
    assert quantised.variant.precision == "int8"
    counts = quantised.variant.operators
    assert counts["ai.coda::Int8Linear"] == 6  # with one for query, key and value
    assert counts["ai.coda::Int8LinearGelu"] == counts["ai.coda::Int8RouterAdapter"] == 2
    quantised.check()
    model = onnx.load(str(quantised.model_path))
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds["model.layers.0.block.feed_forward.up.weight"] == onnx.TensorProto.UINT8
    assert kinds["model.layers.0.router.weight"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("mpnet", CodaConfig(reduction="7/2", attention="k_to_all")),
        ("roberta-prelayernorm", CodaConfig(reduction=1)),
        ("mpnet", CodaConfig(reduction=3, attention="k_to_all", stand_in=4, key_value_rank=6)),
    ],
)
def test_other_forms_are_verified_too(family: str, config: CodaConfig, tmp_path: Path):
    bundle = compile(tiny_coda(family, config), CompileOptions(precision="int8"), output=tmp_path / "bundle")
    # Keys and values of all tokens are one linear layer where queries are of some: in k-to-all, of which thin ones are
    # two, and where the last layer is trimmed to one query.
    linears = {"k_to_all": 8, "k_to_k": 7}[config.attention] + (2 if config.key_value_rank else 0)
    assert bundle.variant.operators["ai.coda::Int8Linear"] == linears


def test_large_tables_are_quantised_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replace, "_LARGE", 100 * 32)  # the tiny models' words, and not their positions
    model = tiny_coda("bert", CodaConfig(reduction=2))
    words = model.embeddings.word_embeddings.weight.detach().clone()
    words[5] = 0
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.copy_(words)
    copied = deepcopy(model)
    quantise(copied)
    table = copied.embeddings.word_embeddings
    assert isinstance(table, Int8Embedding)
    assert isinstance(copied.embeddings.position_embeddings, torch.nn.Embedding)
    error = (table(torch.arange(100)) - words).abs()
    assert (error <= words.abs().amax(1, keepdim=True) / 127 * 0.5001).all()
    bundle = compile(model, CompileOptions(precision="int8"), output=tmp_path / "bundle")
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(str(bundle.model_path)).graph.initializer}
    assert kinds["model.embeddings.word_embeddings.weight"] == onnx.TensorProto.INT8


def test_an_answer_does_not_depend_on_its_batch(quantised: Bundle):
    ids = np.random.default_rng(0).integers(4, 100, (4, 23))
    together = quantised.run({"input_ids": ids})["logits"]
    for row in range(4):
        alone = quantised.run({"input_ids": ids[row : row + 1]})["logits"]
        np.testing.assert_allclose(alone[0], together[row], rtol=0, atol=1e-6)


def test_every_family_is_verified(tmp_path: Path, family: str):
    """Against torch, on shapes that were not exported."""
    bundle = compile(
        tiny_coda(family, CodaConfig(reduction=2)), CompileOptions(precision="int8"), output=tmp_path / "bundle"
    )
    kinds = {one.name: one.data_type for one in onnx.load(str(bundle.model_path)).graph.initializer}
    assert onnx.TensorProto.UINT8 in kinds.values()


def test_the_callers_model_stays_in_float32(tmp_path: Path):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    compile(model, CompileOptions(precision="int8"), output=tmp_path / "bundle")
    assert not any(isinstance(module, Int8Linear) for module in model.modules())


@pytest.mark.parametrize("part", ["attention.out", "attention.key", "feed_forward.down", "adapter.up"])
def test_one_integer_of_one_weight_is_found(quantised: Bundle, tmp_path: Path, part: str):
    """Quantising hides nothing: what is quantised is replayed, so that everything else compares tightly."""
    proto = onnx.load(str(quantised.model_path))
    name = f"layers.1.{part if part.startswith('adapter') else f'block.{part}'}.weight"
    tensor = next(tensor for tensor in proto.graph.initializer if name in tensor.name)
    weight = numpy_helper.to_array(tensor).copy()
    at = 32 if "key" in part else 0  # behind the queries'
    weight[:, at] = np.where(weight[:, at] < 255, weight[:, at] + 1, 254)
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(proto, str(tmp_path / "wrong.onnx"))
    model = tiny_coda("bert", CodaConfig(reduction=2))
    quantise(model)
    with pytest.raises(VerificationError, match="differ by"):
        verify(model, tmp_path / "wrong.onnx", get_backend("cpu"))


@pytest.mark.parametrize("part", ["block.feed_forward.up", "adapter.down"])
def test_tokens_that_were_left_out_are_found(quantised: Bundle, monkeypatch: pytest.MonkeyPatch, part: str):
    """Trimmed is a model to its first token; one that multiplies some of them is wrong."""
    run = RoutingProbe.run

    def short(probe: RoutingProbe, *arguments: Any) -> Any:
        result = run(probe, *arguments)
        name = f"model.layers.1.{part}.weight"
        if probe.products[name].shape[1] > 2:
            probe.products[name] = probe.products[name][:, :2]
        return result

    monkeypatch.setattr(RoutingProbe, "run", short)
    model = tiny_coda("bert", CodaConfig(reduction=2))
    quantise(model)
    with pytest.raises(VerificationError, match=part):
        verify(model, quantised.model_path, get_backend("cpu"))


@pytest.mark.parametrize(("part", "reduction"), [("block.attention.query", 1), ("adapter.up", 1), ("adapter.down", 2)])
@pytest.mark.parametrize("padding", [True, False])
def test_what_is_quantised_may_differ_in_padding_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, reduction: int, padding: bool
):
    """There differences are free to grow from layer to layer, since nothing that counts depends on them."""
    run = RoutingProbe.run

    def off(probe: RoutingProbe, inputs: dict[str, np.ndarray], *others: Any) -> Any:
        result = run(probe, inputs, *others)
        name, moved = f"model.layers.1.{part}.weight", inputs["attention_mask"] == (0 if padding else 1)
        probe.products[name] = probe.products[name] + moved[..., None].astype(np.float32)
        return result

    model = tiny_coda("bert", CodaConfig(reduction=reduction, pooling="mean"))
    bundle = compile(model, CompileOptions(precision="int8"), output=tmp_path / "bundle")
    quantise(model)
    monkeypatch.setattr(RoutingProbe, "run", off)
    with nullcontext() if padding else pytest.raises(VerificationError, match=part):
        verify(model, bundle.model_path, get_backend("cpu"))


def test_weights_that_are_not_finite_are_named():
    model = tiny_coda("bert")
    with torch.no_grad():
        list(model.coda_layers())[1].block.feed_forward.up.weight[0, 0] = torch.nan
    with pytest.raises(CompileError, match=r"^layer 1 cannot be quantised: its up has weights that are not finite$"):
        quantise(model)
    model = tiny_coda("bert", CodaConfig(reduction=2, stand_in=4))
    with torch.no_grad():
        list(model.coda_layers())[1].stand_in.up[0, 0] = torch.nan
    with pytest.raises(CompileError, match=r"^layer 1 cannot be quantised: its stand-in's up has weights that are not"):
        quantise(model)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    save(tiny_coda("bert", CodaConfig(reduction=2)), tmp_path / "model.pt")
    output = tmp_path / "bundle"
    command = ["coda-compile", str(tmp_path / "model.pt"), "-o", str(output), "--precision", "int8"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert "verified" in capfd.readouterr().out
    assert Bundle(output).variant.precision == "int8"
    monkeypatch.setattr(sys, "argv", ["coda-compile", "verify", str(output)])
    main()
    assert "intact and right" in capfd.readouterr().out
