"""Backend openvino: what must hold without the plugin, and, marked slow, models that really run in OpenVINO."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.compiler.exports import lora_classifier, write
from tests.conftest import TINY, tiny_coda
from tests.targets.runtimes.test_openvino import INSTALL, absent, needs_plugin

from coda_compile import CompileOptions, compile
from coda_compile.backends import Backend, get_backend
from coda_compile.bench.plan import Plan
from coda_compile.bench.run import bench
from coda_compile.errors import CodaError, OptionError
from coda_compile.inspect.predict import predict
from coda_compile.inspect.profile import profile_bundle
from coda_compile.regression.facts import read_facts
from coda_compile.sources import read_source
from coda_compile.verify.reference_vectors import verify_bundle
from coda_models import CodaConfig
from coda_targets import Bundle, TargetError, get_runtime
from coda_targets.routing import RoutingProbe
from coda_targets.runtimes import plugin

EXAMPLES = Path(__file__).parents[3] / "examples"
slow = pytest.mark.slow


def on_cpu() -> Backend:
    """The backend's passes, run by onnxruntime itself as they write it: fused it would round in a way of its own."""
    backend, providers = get_backend("openvino"), get_runtime("cpu").providers
    runtime = replace(backend.runtime, plugin="", providers=providers, graph_level="basic", session_config={})
    return replace(backend, runtime=runtime)


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Bundle:
    """A tiny BERT in int8 as the passes leave it, verified where every machine can."""
    output = tmp_path_factory.mktemp("lowered") / "bundle"
    return compile(
        tiny_coda("bert", CodaConfig(reduction=2)),
        CompileOptions(target=on_cpu(), tokenizer=tokenizer, precision="int8"),
        output=output,
    )


def test_without_the_plugin_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plugin, "import_module", absent)
    with pytest.raises(TargetError, match=INSTALL):
        compile(tiny_coda(), CompileOptions(target="openvino"), output=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_weights_alone_are_quantised_in_the_file(lowered: Bundle):
    assert lowered.variant.minimum_onnxruntime == "1.23"
    counts = lowered.variant.operators
    assert counts["DequantizeLinear"] == 16  # eight a layer, adapters too
    assert "ai.coda::Int8Linear" not in counts
    assert not any("::" in name and not name.startswith("ai.coda::") for name in counts)  # OpenVINO fuses by itself
    proto = onnx.load(str(lowered.model_path))
    onnx.checker.check_model(proto, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert kinds["model.layers.0.block.feed_forward.up.weight"] == onnx.TensorProto.UINT8
    assert kinds["model.layers.0.router.weight"] == onnx.TensorProto.FLOAT


def test_what_it_cannot_do_it_refuses(lowered: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coda_compile.backends.require_runtime", lambda runtime: None)
    model = tiny_coda("bert", CodaConfig(reduction=2))
    with pytest.raises(OptionError, match=r"^target 'openvino' cannot swap tasks: compile each by itself"):
        compile({"a": model, "b": model}, CompileOptions(target="openvino"), output=tmp_path / "b")
    with pytest.raises(OptionError, match=r"^target 'openvino' packs no rows: leave out pack$"):
        compile(model, CompileOptions(target="openvino", pack=True), output=tmp_path / "b")
    with pytest.raises(OptionError, match=r"has no precision 'int4': use one of fp32, int8, int8-static$"):
        compile(model, CompileOptions(target="openvino", precision="int4"), output=tmp_path / "b")
    with pytest.raises(CodaError, match=r"^OpenVINOExecutionProvider runs a model as one piece and shows no layers"):
        profile_bundle(Bundle(lowered.folder))
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_onnxruntimes_own_operators_is_refused_by_their_name(tmp_path: Path):
    path = write(lora_classifier(), tmp_path / "lora")
    proto = onnx.load(str(path))
    node = next(node for node in proto.graph.node if node.op_type == "MatMul")
    node.op_type, node.domain = "FusedMatMul", "com.microsoft"
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, str(path))
    with pytest.raises(
        CodaError, match=rf"^target 'openvino' knows no operator com.microsoft::FusedMatMul, as .*{node.name}"
    ):
        compile(path, CompileOptions(target=on_cpu()), output=tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_a_bundle_is_measured_for_targets_that_it_has(compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coda_compile.bench.plan.require_runtime", lambda runtime: None)
    with pytest.raises(CodaError, match="has no variant for openvino: it has cpu fp32"):
        bench(compiled, plan=Plan(targets=("openvino",)))


@slow
@needs_plugin
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("family", sorted(TINY))
@pytest.mark.parametrize(
    "config",
    [
        CodaConfig(reduction=2),
        CodaConfig(reduction="7/2", attention="k_to_all", task="token-classification"),
        CodaConfig(reduction=[1, 3], pooling="mean", task="feature-extraction"),
    ],
    ids=["k to k", "k to all, tokens", "one dense layer, features"],
)
def test_every_family_verifies_in_openvino(family: str, config: CodaConfig, precision: str, tmp_path: Path):
    bundle = compile(
        tiny_coda(family, config, seed=7), CompileOptions(target="openvino", precision=precision), output=tmp_path / "b"
    )
    assert bundle.variant.minimum_onnxruntime == "1.23"
    assert bundle.variant.session.options["INFERENCE_PRECISION_HINT"] == "f32"
    verify_bundle(bundle)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def demo(request: pytest.FixtureRequest, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The demo model for both targets, in one precision."""
    source = read_source(EXAMPLES / "reviews.pt", backbone=encoder)
    folder = tmp_path_factory.mktemp("demo")
    return {
        target: compile(
            source.model,
            CompileOptions(target=target, tokenizer=source.tokenizer, precision=request.param),
            output=folder / target,
        )
        for target in ("cpu", "openvino")
    }


@slow
@needs_plugin
def test_the_demo_answers_as_on_cpu(demo: dict[str, Bundle]):
    texts = [line for line in (EXAMPLES / "reviews.txt").read_text("utf-8").splitlines() if line.strip()][:16]
    cpu, openvino = ([record for _, record, _ in predict(bundle, texts, batch=5)] for bundle in demo.values())
    assert [record["label"] for record in openvino] == [record["label"] for record in cpu]
    # In int8 both round activations, by steps of their own.
    within = 1e-4 if demo["cpu"].variant.precision == "fp32" else 5e-2
    np.testing.assert_allclose([r["score"] for r in openvino], [r["score"] for r in cpu], rtol=0, atol=within)


@slow
@needs_plugin
def test_the_demo_runs_every_shape_and_padding_changes_nothing(demo: dict[str, Bundle]):
    bundle, random = demo["openvino"], np.random.default_rng(0)
    verify_bundle(bundle)
    for batch, tokens in ((1, 1), (2, 3), (5, 97), (1, 511), (2, 512)):
        ids = random.integers(1000, 20000, (batch, tokens))
        lengths = random.integers(1, tokens + 1, batch)
        mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
        together = bundle.run({"input_ids": ids * mask, "attention_mask": mask})["logits"]
        for row, length in enumerate(lengths):
            alone = bundle.run({"input_ids": ids[row : row + 1, :length]})["logits"]
            # In int8 the last bit of an activation may decide between two levels.
            within = 2e-4 if bundle.variant.precision == "fp32" else 5e-2
            np.testing.assert_allclose(alone[0], together[row], rtol=0, atol=within)


@slow
@needs_plugin
def test_all_of_the_demo_is_placed_in_openvino(demo: dict[str, Bundle]):
    facts = read_facts(demo["openvino"])
    assert facts.placement == {"OpenVINOExecutionProvider": 1}
    assert facts.preferred == "OpenVINOExecutionProvider"


@slow
@needs_plugin
def test_threads_are_those_asked_for(demo: dict[str, Bundle]):
    code = (
        "import sys, time, numpy as np; from coda_targets import Bundle;"
        f"b = Bundle({str(demo['openvino'].folder)!r}, threads=1); x = {{'input_ids': np.full((1, 512), 1000)}};"
        "b.run(x); c, w = time.process_time(), time.perf_counter(); [b.run(x) for _ in range(8)];"
        "print((time.process_time() - c) / (time.perf_counter() - w),"
        " [m for m in ('torch', 'transformers', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    busy, modules = done.stdout.strip().split(" ", 1)
    assert float(busy) < 1.2
    assert modules == "[]"


@slow
@needs_plugin
def test_routing_is_read_in_openvino(demo: dict[str, Bundle]):
    ids = {"input_ids": np.random.default_rng(1).integers(1000, 20000, (1, 200))}
    cpu, openvino = (RoutingProbe.of(bundle).run(bundle.prepare(ids))[1] for bundle in demo.values())
    assert [d.layer for d in openvino] == [d.layer for d in cpu] == [0, 2, 3, 4, 5]
    same = [len({*a.selected(0)} & {*b.selected(0)}) / a.used[0].sum() for a, b in zip(cpu, openvino, strict=True)]
    assert min(same) == 1.0 if demo["cpu"].variant.precision == "fp32" else min(same) > 0.8


@slow
@needs_plugin
def test_bench_measures_it_beside_cpu():
    skip = ("torch.compile", "optimum O3", "OpenVINO")
    plan = Plan(tokens=(8,), precisions=("fp32",), rounds=4, threads=1, skip=skip, targets=("cpu", "openvino"))
    result = bench(tiny_coda("bert", CodaConfig(reduction=4)), plan=plan)
    compiled = {m.contender: m for m in result.measurements if not m.speed_up}
    assert set(compiled) == {"coda-compile r=4", "coda-compile r=4 openvino"}
    assert compiled["coda-compile r=4 openvino"].target == "openvino"
    assert all(set(m.speed_up) == {"4", "4 openvino"} for m in result.measurements if m.speed_up)
    assert len(result.bounds) == 1
