"""A compiled model that is wrong anywhere is refused, by name."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from tests.conftest import tiny_coda
from transformers import AutoConfig

import coda_compile.pipeline
import coda_compile.sources.torch_model
from coda_compile import compile
from coda_compile.backends import get_backend
from coda_compile.errors import VerificationError
from coda_compile.verify.against_torch import reference, verify
from coda_compile.verify.cases import cases, make_case
from coda_compile.verify.reference_vectors import verify_bundle
from coda_models import CodaConfig, CodaModel, convert
from coda_models.backbone import build_backbone
from coda_ops import DOMAIN, native
from coda_targets import Bundle
from coda_targets.bundle_files import list_files
from coda_targets.manifest import MANIFEST, read_manifest
from coda_targets.routing import RoutingProbe

CPU = get_backend("cpu").verified_on()  # function bodies are corrupted, too


@pytest.fixture(scope="module")
def model():
    """What the ``compiled`` bundle was made from."""
    return tiny_coda("bert", CodaConfig(reduction=2))


def weight(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def nudge(name: str, by: float) -> Callable[[onnx.ModelProto], None]:
    """Add to the largest element of a weight."""

    def change(proto: onnx.ModelProto) -> None:
        tensor = weight(proto, name)
        array = numpy_helper.to_array(tensor).copy()
        array.flat[np.abs(array).argmax()] += by
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return change


def first_dense(proto: onnx.ModelProto, role: str) -> str:
    """The weight of layer 1's first matrix product of a role; the exporter transposes those, under names of its own."""
    for node in proto.graph.node:
        tags = {p.key: p.value for p in node.metadata_props}
        if node.op_type == "MatMul" and tags.get("coda.layer") == "1" and tags["coda.role"] == role:
            return node.input[1]
    raise AssertionError(role)


def dense(role: str) -> Callable[[onnx.ModelProto], None]:
    return lambda proto: nudge(first_dense(proto, role), 0.05)(proto)


def swap_gates(proto: onnx.ModelProto) -> None:
    """Let Route's body give the gates of a hard top-k: 1 for every token."""
    body = next(f for f in proto.functions if f.name == "Route")
    next(n for n in body.node if n.op_type == "Exp").op_type = "Ceil"


def smallest_first(proto: onnx.ModelProto) -> None:
    body = next(f for f in proto.functions if f.name == "Route")
    top = next(n for n in body.node if n.op_type == "TopK")
    next(a for a in top.attribute if a.name == "largest").i = 0


def leave_order(proto: onnx.ModelProto) -> None:
    body = next(f for f in proto.functions if f.name == "Route")
    second = [n for n in body.node if n.op_type == "TopK"][1]
    next(a for a in second.attribute if a.name == "largest").i = 1


CORRUPTIONS = {
    "embedding": (nudge("model.embeddings.position_embeddings.weight", 0.5), "scores of layer 0"),
    "adapter of layer 0": (nudge("model.layers.0.adapter.up", 0.05), "scores of layer 1"),
    "adapter of layer 1": (nudge("model.layers.1.adapter.down", 0.5), "logits"),
    "router": (nudge("model.layers.1.router.weight", 0.05), "scores of layer 1"),
    "norm": (nudge("model.layers.1.block.norm2.weight", 0.05), "logits"),
    "attention": (dense("attention"), "logits"),
    "feed-forward": (dense("feed_forward"), "logits"),
    "head": (nudge("model.head.2.bias", 0.01), "logits"),
    "not a number": (nudge("model.head.2.weight", float("nan")), "logits"),
    "gates": (swap_gates, "gates of layer 0"),
    "selection": (smallest_first, "selection of layer 0"),
    "order": (leave_order, "selection of layer 0, example 0 is not a sorted set"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_caught(name: str, model, compiled: Bundle, tmp_path: Path):
    change, what = CORRUPTIONS[name]
    proto = onnx.load(str(compiled.model_path))
    change(proto)
    onnx.save(proto, str(tmp_path / "model.onnx"))
    seen: list[tuple] = []
    with pytest.raises(
        VerificationError, match=rf"^verification failed on input '\d x \d+ tokens, \w+': {what}"
    ) as caught:
        verify(model, tmp_path / "model.onnx", CPU, on_failure=lambda *given: seen.append(given))
    ((case, expected, actual),) = seen
    assert f"'{case.name}'" in str(caught.value)
    assert list(actual) == ["logits"]
    assert list(expected) in ([], ["logits"])


def test_malformed_selection_never_reaches_torch(model, compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    """torch would fail on positions outside the sequence, with an error of its own."""

    class Beyond(RoutingProbe):
        def run(self, inputs, adapter=None, decisions=()):
            outputs, decisions = super().run(inputs)
            shifted = [dataclasses.replace(d, indices=d.indices + inputs["input_ids"].shape[1]) for d in decisions]
            return outputs, shifted

    monkeypatch.setattr("coda_compile.verify.against_torch.RoutingProbe", Beyond)
    with pytest.raises(
        VerificationError, match=r"selection of layer 0, example 0 is not a sorted set of valid positions"
    ):
        verify(model, compiled.model_path, CPU)


def test_intact_model_passes(model, compiled: Bundle):
    results = verify(model, compiled.model_path, CPU)
    *free, decided = results
    assert [result.case for result in free] == [case.name for case in cases(model.signature)]
    assert decided.case == "3 x 37 tokens, ragged, the first token routed in every layer"
    assert not any(result.float64 for result in results)
    for result in results:
        assert 0 < result.outputs["logits"] < 5e-5
        assert result.skipped == 0
        assert result.scores < 5e-4
    assert any(result.narrowest is not None for result in free)


def test_reference_is_torchs_own_choice(model):
    outputs, decisions = reference(model, make_case(model.signature, 2, 9, ragged=True))
    assert list(outputs) == ["logits"]
    assert [decision.layer for decision in decisions] == [0, 1]


@pytest.fixture(scope="module")
def once(model):
    """The model exported and lowered once, for the tests that write it wrong."""
    exported = coda_compile.sources.torch_model.export(model, CPU.opset)
    coda_compile.pipeline.run_passes(exported, CPU.passes())
    return exported


@pytest.fixture
def quick(once, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coda_compile.sources.torch_model, "export", lambda *_: ir.from_proto(ir.to_proto(once)))
    monkeypatch.setattr(coda_compile.pipeline, "run_passes", lambda *_: [])


def corrupting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the compiler write a wrong adapter."""

    change_saved(monkeypatch, nudge("model.layers.0.adapter.up", 0.5))


def change_saved(monkeypatch: pytest.MonkeyPatch, change: Callable[[onnx.ModelProto], None]) -> None:
    """Let the compiler write something else than it made."""
    save_variants = coda_compile.pipeline.save_variants

    def save(folder: Path, variants: Any) -> Any:
        (file,) = files = save_variants(folder, variants)
        proto = onnx.load(str(file.path))
        change(proto)
        onnx.save(proto, str(file.path))
        return files

    monkeypatch.setattr(coda_compile.pipeline, "save_variants", save)


@pytest.mark.usefixtures("quick")
def test_failed_compile_leaves_a_reproduction_and_no_bundle(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    corrupting(monkeypatch)
    output = tmp_path / "model-cpu"
    with pytest.raises(VerificationError, match=r"scores of layer 1 differ by .*; reproduction in ") as caught:
        compile(model, output=output)
    kept = tmp_path / "model-cpu-failed"
    assert str(caught.value).endswith(str(kept))
    assert list(tmp_path.iterdir()) == [kept]
    assert {path.name for path in kept.iterdir()} == {
        "model.onnx",
        "inputs.npz",
        "expected.npz",
        "actual.npz",
        "reproduce.py",
    }
    ran = subprocess.run([sys.executable, str(kept / "reproduce.py")], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("logits: ")


@pytest.mark.usefixtures("quick")
def test_reproduction_of_wrong_outputs_prints_the_difference(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    change_saved(monkeypatch, nudge("model.head.2.bias", 1.0))
    with pytest.raises(VerificationError, match=r"logits differ by 1 "):
        compile(model, output=tmp_path / "b")
    script = tmp_path / "b-failed" / "reproduce.py"
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, cwd="/")
    assert ran.stdout.strip() == "logits: largest difference 1"


@pytest.mark.usefixtures("quick")
def test_older_bundle_survives_a_failed_compile(model, copied: Path, monkeypatch: pytest.MonkeyPatch):
    corrupting(monkeypatch)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(VerificationError):
        compile(model, output=copied)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in copied.parent.iterdir()) == ["bundle", "bundle-failed"]


@pytest.mark.usefixtures("quick")
def test_lowering_that_breaks_the_model_is_caught(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_passes = coda_compile.pipeline.run_passes

    def breaking(compiled: ir.Model, names: tuple[str, ...]):
        reports = run_passes(compiled, names)
        route = next(node for node in compiled.graph if (node.domain, node.op_type) == (DOMAIN, "Route"))
        route.attributes["numerator"] = ir.AttrInt64("numerator", 3)
        return reports

    monkeypatch.setattr(coda_compile.pipeline, "run_passes", breaking)
    with pytest.raises(
        VerificationError, match=r"^verification failed on input '3 x \d+ tokens, ragged': onnxruntime cannot"
    ):
        compile(model, output=tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b-failed"]


def honest(folder: Path) -> Bundle:
    """Let the manifest vouch for whatever lies in the folder now."""
    vouched = dataclasses.replace(read_manifest(folder), files=list_files(folder))
    (folder / MANIFEST).write_text(vouched.dump(), "utf-8")
    return Bundle(folder)


@pytest.mark.parametrize("attention", ["k_to_k", "k_to_all"])
@pytest.mark.parametrize("reduction", ["9/8", "2", "8"])
def test_queries_of_the_last_layer_are_seen_where_its_router_leaves_the_first_token_out(
    reduction: str, attention: str, tmp_path: Path
):
    routed = tiny_coda("bert", CodaConfig(reduction=reduction, attention=attention))
    last = list(routed.coda_layers())[-1]
    assert last.router is not None
    with torch.no_grad():
        last.router.weight.zero_()
        last.router.weight[0, 0] = 1.0
        # Whatever the text, its first token scores lowest.
        routed.embeddings.position_embeddings.weight[0, 0] = -60.0
    bundle = compile(routed, output=tmp_path / "bundle")
    proto = onnx.load(str(bundle.model_path))
    name = first_dense(proto, "attention")  # of queries, alone or before keys and values
    tensor = weight(proto, name)
    array = numpy_helper.to_array(tensor).copy()
    array[:, :32] += 0.3
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(proto, str(bundle.model_path))
    found = "the first token routed in every layer': logits differ" if reduction != "9/8" else "logits differ"
    with pytest.raises(VerificationError, match=found):
        verify(routed, bundle.model_path, CPU)
    with pytest.raises(VerificationError, match=found):
        verify_bundle(honest(bundle.folder))


def test_token_types_are_compared(model, compiled: Bundle, copied: Path):
    proto = onnx.load(str(copied / "model.onnx"))
    tensor = next(one for one in proto.graph.initializer if "token_type_embeddings" in one.name)
    array = numpy_helper.to_array(tensor).copy()
    array[1, 3] += 0.01
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, str(copied / "model.onnx"))
    with pytest.raises(VerificationError, match="scores of layer 0 differ"):
        verify(model, copied / "model.onnx", CPU)
    with pytest.raises(VerificationError, match="scores of layer 0 differ"):
        verify_bundle(honest(copied))


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
def test_kernels_that_are_wrong_are_named(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Wrong(RoutingProbe):
        def __init__(self, path, target, **options):
            super().__init__(path, target, **options)
            self.native = bool(target.kernels)

        def run(self, inputs, adapter=None, decisions=()):
            outputs, decisions = super().run(inputs, adapter, decisions)
            return {name: array + 0.1 * self.native for name, array in outputs.items()}, decisions

    monkeypatch.setattr("coda_compile.verify.against_torch.RoutingProbe", Wrong)
    sentence = (
        r"^with the native kernels in .*coda_ops\.so verification failed on input '1 x 1 tokens, full': logits differ"
    )
    with pytest.raises(VerificationError, match=sentence):
        compile(model, output=tmp_path / "b")
    script = tmp_path / "b-failed" / "reproduce.py"
    assert "native.LIBRARIES['cpu']" in script.read_text()
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("logits: largest difference")
    monkeypatch.setenv(native.SWITCH, "portable")
    compile(model, output=tmp_path / "b")


def deep() -> CodaModel:
    """A model that makes much of little: what float32 rounds away in the first layers decides over the last ones."""
    sizes = {"num_hidden_layers": 8, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    config = AutoConfig.for_model(
        "mpnet", vocab_size=100, max_position_embeddings=66, pad_token_id=1, num_labels=3, **sizes
    )
    torch.manual_seed(0)
    made = convert(build_backbone(config, "sequence-classification"), CodaConfig(reduction=2, attention="k_to_all"))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.5 if ".block." in name else 0.25)
    return made.eval()


def test_where_float32_cannot_tell_float64_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(native.SWITCH, "portable")
    rough = deep()
    bundle = compile(rough, output=tmp_path / "bundle")
    parity = json.loads((bundle.folder / "report.json").read_text())["variants"]["cpu"]["parity"]["cases"]
    decided = [case for case in parity if case["float64"]]
    assert decided
    verify_bundle(bundle)
    proto = onnx.load(str(bundle.model_path))
    for name, by in (("model.layers.1.router.weight", 0.5), ("model.head.out_proj.bias", 0.5)):
        wrong = onnx.ModelProto.FromString(proto.SerializeToString())
        nudge(name, by)(wrong)
        onnx.save(wrong, str(bundle.model_path))
        with pytest.raises(VerificationError, match="differ"):
            verify(rough, bundle.model_path, CPU)
        with pytest.raises(VerificationError, match="differ"):
            verify_bundle(honest(bundle.folder))


@pytest.mark.slow
def test_mpnet_base_with_random_weights_compiles(tmp_path: Path):
    """Twelve layers of 768: its scores are nearer to float64 than torch's float32 are, and further from these than 2e-5."""
    config = AutoConfig.for_model("mpnet", num_labels=3)
    torch.manual_seed(0)
    made = convert(
        build_backbone(config, "sequence-classification"), CodaConfig(reduction=2, attention="k_to_all", pooling="mean")
    )
    for layer in made.coda_layers():
        assert layer.router is not None
        torch.nn.init.normal_(layer.router.weight, std=0.3)
    verify_bundle(compile(made.eval(), output=tmp_path / "bundle"))


def test_corrupted_copy_is_refused_by_its_own_test_data(copied: Path):
    """The same corruption, found again on another machine without torch."""
    proto = onnx.load(str(copied / "model.onnx"))
    nudge("model.layers.0.adapter.up", 0.05)(proto)
    onnx.save(proto, str(copied / "model.onnx"))
    with pytest.raises(VerificationError, match=r"test data, 3 x 37 tokens.*scores of layer 1"):
        verify_bundle(honest(copied))
