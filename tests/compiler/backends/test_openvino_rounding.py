"""Linear layers whose activations OpenVINO quantises: what torch makes of them, and how it is found out."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from tests.compiler.backends.test_openvino import on_cpu
from tests.compiler.passes.test_lower_static_linears import static as static_model
from tests.compiler.passes.test_lower_static_linears import texts
from tests.conftest import tiny_coda
from tests.exporting import export
from tests.targets.runtimes.test_openvino import needs_plugin
from transformers import AutoConfig

from coda_compile import CompileOptions, compile
from coda_compile.backends import Backend, get_backend, openvino_rounding
from coda_compile.backends.openvino import OpenvinoBackend
from coda_compile.backends.openvino_rounding import by_range, group_of, linear_by_group, quantise_by_range
from coda_compile.errors import VerificationError
from coda_compile.passes.dequantize_weights import DequantizeWeights
from coda_compile.precision import get_precision
from coda_compile.precision.int8 import Int8Linear
from coda_compile.verify.against_torch import verify
from coda_models import CodaConfig, CodaModel, convert
from coda_models.backbone import build_backbone
from coda_ops import int8_linear, int8_static_linear
from coda_targets import Bundle, get_runtime
from coda_targets.routing import LAYER_TAG


def product(inputs: int, outputs: int = 6) -> tuple[torch.Tensor, Any, torch.Tensor]:
    generator = torch.Generator().manual_seed(inputs)
    x = torch.randn((2, 5, inputs), generator=generator)
    return x, int8_linear.quantise(torch.randn((inputs, outputs), generator=generator)), torch.arange(outputs).float()


@pytest.mark.parametrize("group", [0, 9])
def test_without_a_group_or_with_fewer_inputs_nothing_is_rounded(group: int):
    x, rounded, bias = product(8)
    exact = x.double() @ ((rounded.weight.double() - 128) * rounded.scale.double()) + bias
    torch.testing.assert_close(linear_by_group(x, *rounded, bias, group).double(), exact, rtol=0, atol=1e-5)


def test_one_group_of_all_inputs_is_int8_linear():
    x, rounded, bias = product(24)
    torch.testing.assert_close(
        linear_by_group(x, *rounded, bias, 24), int8_linear.int8_linear(x, *rounded, bias), rtol=0, atol=1e-5
    )


def test_each_group_has_a_scale_of_its_own_and_the_last_is_what_is_left():
    x, rounded, bias = product(20)
    x[0, 0, :8] = 0
    x[0, 1, 8:16] *= 100
    whole = sum(
        int8_linear.int8_linear(x[..., a:b], rounded.weight[a:b], rounded.scale, torch.zeros(6))
        for a, b in ((0, 8), (8, 16), (16, 20))
    )
    torch.testing.assert_close(linear_by_group(x, *rounded, bias, 8), whole + bias, rtol=1e-5, atol=1e-4)


def test_onnxruntime_itself_rounds_no_activations():
    assert group_of(on_cpu().runtime) == 0


def test_a_third_way_is_refused(monkeypatch: pytest.MonkeyPatch):
    class Session:
        def run(self, names: None, feed: dict[str, Any]) -> list[Any]:
            return [np.zeros((len(feed["x"]), 8), np.float32)]

    monkeypatch.setattr(openvino_rounding, "open_session", lambda *_, **__: Session())
    with pytest.raises(
        VerificationError, match=r"^target 'openvino' neither leaves activations as they are nor quantises"
    ):
        group_of(get_runtime("openvino"))
    with pytest.raises(VerificationError, match=r"^target 'openvino' quantises activations in a way of its own"):
        by_range(get_runtime("openvino"))


def test_integers_by_range_are_float32_arithmetic_and_now_and_then_others():
    rounding = int8_static_linear.quantisation_of(-3.1, 3.3)
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    found = quantise_by_range(x, *rounding)
    step, zero, most = rounding.scale.numpy(), np.float32(rounding.zero_point), np.float32(255)
    low, high = step * (np.float32(0) - zero), step * (most - zero)
    scale, shift = most / (high - low), -low * most / (high - low)
    exact = (x.double().numpy() * float(scale) + float(shift)).astype(np.float32)
    np.testing.assert_array_equal(found.numpy(), np.clip(np.round(exact), 0, 255))
    others = (found - int8_static_linear.quantise(x, *rounding)).abs()
    assert set(others.unique().tolist()) == {0.0, 1.0}
    assert float(others.sum()) < 10


def test_who_computes_linears_in_a_way_of_its_own():
    assert not by_range(on_cpu().runtime)
    dynamic, static = tiny_coda(), static_model()
    get_precision("int8").quantise(dynamic, (), True)
    backend, cpu = on_cpu(), get_backend("cpu")
    assert set(backend.linears_as_run(dynamic)) == set(backend.linears_as_written()) == {Int8Linear}
    assert backend.linears_as_run(static) == cpu.linears_as_run(dynamic) == cpu.linears_as_written() == {}


def test_the_pass_replaces_every_product_once_and_keeps_its_layer():
    model = tiny_coda("bert", CodaConfig(reduction=2))
    get_precision("int8").quantise(model, (), True)
    compiled = export(model, opset=20)
    before = [n.metadata_props[LAYER_TAG] for n in compiled.graph if n.op_type == "Int8Linear"]
    outputs = [n.outputs[0].name for n in compiled.graph if n.op_type == "Int8Linear"]
    assert DequantizeWeights()(compiled).modified
    wide = {n.outputs[0] for n in compiled.graph if n.op_type == "DequantizeLinear"}
    products = [n for n in compiled.graph if n.op_type == "MatMul" and n.inputs[1] in wide]
    assert [n.metadata_props[LAYER_TAG] for n in products] == before == ["0"] * 8 + ["1"] * 8
    assert [user.outputs[0].name for n in products for user, _ in n.outputs[0].uses()] == outputs
    assert not any(n.op_type == "Int8Linear" for n in compiled.graph)
    assert not DequantizeWeights()(compiled).modified


def test_the_pass_leaves_other_graphs_alone(raw: ir.Model):
    assert not DequantizeWeights()(raw).modified


@pytest.fixture(scope="module")
def wide() -> CodaModel:
    """Wide enough for groups of 128, the feed-forward with a last group of its own."""
    config = AutoConfig.for_model(
        "bert",
        vocab_size=100,
        max_position_embeddings=40,
        hidden_size=256,
        num_attention_heads=4,
        num_hidden_layers=2,
        intermediate_size=320,
        num_labels=3,
    )
    torch.manual_seed(0)
    encoder = build_backbone(config, "sequence-classification")
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.06) if parameter.dim() > 1 else None
    model = convert(encoder.eval(), CodaConfig(reduction=2))
    for layer in model.coda_layers():
        torch.nn.init.normal_(layer.router.weight, std=0.3)
    return model.eval()


def refuse(bundle: Bundle, model: CodaModel, backend: Backend, tmp_path: Path) -> None:
    """One level of one output's weights is found."""
    proto = onnx.load(str(bundle.model_path))
    name = "model.layers.1.block.feed_forward.down.weight"
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    levels = numpy_helper.to_array(tensor).copy()
    levels[:, 0] = np.where(levels[:, 0] < 255, levels[:, 0] + 1, 254)
    tensor.CopyFrom(numpy_helper.from_array(levels, name))
    onnx.save(proto, str(tmp_path / "wrong.onnx"))
    get_precision("int8").quantise(model, (), True)
    verify(model, bundle.model_path, backend)
    with pytest.raises(VerificationError, match="differ by"):
        verify(model, tmp_path / "wrong.onnx", backend)


def test_one_level_of_one_weight_is_found(tmp_path: Path):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    bundle = compile(model, CompileOptions(target=on_cpu(), precision="int8"), output=tmp_path / "b")
    refuse(bundle, model, on_cpu(), tmp_path)


class Strict(OpenvinoBackend):
    """Allows gates no rounding in float32."""

    def gate_tolerance(self, scores: Any, epsilon: float) -> float:
        return 0.0


def test_float32_gates_are_allowed_their_rounding_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    off = 3e-6
    actual = rounding_off_gates(off, monkeypatch)
    backend = on_cpu()
    compile(model, CompileOptions(target=backend), output=tmp_path / "b")
    with pytest.raises(VerificationError, match=r"gates of layer \d differ by 3e-06 \(allowed 1e-06\)"):
        compile(
            model,
            CompileOptions(target=Strict(backend.runtime, backend.opset, backend.precisions)),
            output=tmp_path / "b",
        )
    actual["off"] = 1e-2
    with pytest.raises(VerificationError, match=r"gates of layer \d differ by"):
        compile(model, CompileOptions(target=backend), output=tmp_path / "b")


def rounding_off_gates(off: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Have every gate between 0 and 1 be off by so much."""
    by = {"off": off}
    run = verify.__globals__["RoutingProbe"].run

    def moved(self: Any, *arguments: Any) -> Any:
        outputs, decisions = run(self, *arguments)
        return outputs, [
            replace(d, gates=np.where((d.gates > 0.1) & (d.gates < 0.9), d.gates + np.float32(by["off"]), d.gates))
            for d in decisions
        ]

    monkeypatch.setattr("coda_targets.routing.RoutingProbe.run", moved)
    return by


@pytest.mark.slow
@needs_plugin
def test_openvino_rounds_as_torch_does_here(wide: CodaModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backend = get_backend("openvino")
    group = group_of(backend.runtime)
    assert group in (0, 128)  # 128 where the processor multiplies bytes at once
    x, rounded, bias = product(320, 8)
    session = openvino_rounding.open_session(openvino_rounding._one_linear(*rounded, 128), backend.runtime)
    got = session.run(None, {"x": x.flatten(0, 1).numpy()})[0]
    torch.testing.assert_close(
        torch.from_numpy(got), linear_by_group(x, *rounded, 0 * bias, group).flatten(0, 1), rtol=1e-5, atol=1e-4
    )
    wide = deepcopy(wide)
    bundle = compile(wide, CompileOptions(target="openvino", precision="int8"), output=tmp_path / "b")
    refuse(bundle, wide, backend, tmp_path)
    if group:
        monkeypatch.setattr("coda_compile.backends.openvino_rounding.group_of", lambda runtime: 0)
        with pytest.raises(VerificationError, match="differ by"):
            verify(wide, bundle.model_path, backend)


@pytest.mark.slow
@needs_plugin
def test_openvino_rounds_by_the_range(wide: CodaModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert by_range(get_runtime("openvino"))
    compile(
        wide, CompileOptions(target="openvino", precision="int8-static", calibration=texts(wide)), output=tmp_path / "b"
    )
    monkeypatch.setattr(
        openvino_rounding, "quantise_by_range", lambda x, scale, zero: ((x / scale).floor() + zero).clamp(0, 255)
    )
    monkeypatch.setattr(openvino_rounding, "by_range", lambda runtime: True)
    with pytest.raises(VerificationError, match="differ by"):
        compile(
            wide,
            CompileOptions(target="openvino", precision="int8-static", calibration=texts(wide)),
            output=tmp_path / "b",
        )
