"""The profile: every kernel of a real bundle is traced, and what cannot be traced is told."""

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from tests.conftest import tiny_coda

from coda_compile import compile
from coda_compile.errors import CodaError
from coda_compile.inspect.profile import Kernel, Place, Profile, profile_bundle, trace
from coda_models import CodaConfig
from coda_targets import Bundle, BundleError
from coda_targets.runtimes.session import open_session


@pytest.fixture(scope="module")
def profile(compiled: Bundle, portable: None) -> Profile:
    return profile_bundle(compiled, batch=2, tokens=20, runs=3, threads=1)


def test_every_kernel_is_traced_to_its_layer(profile: Profile):
    assert profile.unattributed == 0
    assert {k.place.layer for k in profile.kernels if k.place} == {0, 1, None}
    for layer in (0, 1):
        roles = {k.place.role for k in profile.kernels if k.place and k.place.layer == layer}
        assert roles == {"attention", "feed_forward", "norm", "adapter", "router", "routing"}
    outside = {k.place.role for k in profile.kernels if k.place and k.place.layer is None}
    assert outside == {"embeddings", "head", "model"}


def test_kernels_of_inlined_functions_know_which(profile: Profile):
    counts = Counter((k.place.layer, k.place.function) for k in profile.kernels if k.place and k.place.function)
    for layer in (0, 1):
        assert counts[layer, "Route"] > 50
        assert counts[layer, "AddAdapter"] == 6
        assert counts[layer, "TakeTokens"] == 1
        assert counts[layer, "PutDifference"] > 5
    first, second = (
        next(k.operator for k in profile.kernels if k.place == Place(layer, "adapter", "AddAdapter"))
        for layer in (0, 1)
    )
    assert first == second == "MatMul"


def test_fused_nodes_are_traced_by_what_they_compute(profile: Profile):
    norms = Counter(k.place for k in profile.kernels if k.operator == "SkipLayerNormalization")
    assert norms == {Place(0, "norm"): 2, Place(1, "norm"): 2}


def test_times_are_of_counted_runs(profile: Profile):
    assert (profile.batch, profile.tokens, profile.runs, profile.threads) == (2, 20, 3, 1)
    assert all(kernel.seconds >= 0 for kernel in profile.kernels)
    assert 0 < profile.kernel_seconds < profile.run_seconds
    assert {kernel.provider for kernel in profile.kernels} == {"CPUExecutionProvider"}
    assert len(profile.kernels) == len(profile.graph.node)


def test_names_change_no_optimisation(profile: Profile, compiled: Bundle, tmp_path: Path):
    path = tmp_path / "as-shipped.onnx"
    runtime = replace(compiled.runtime, session_options={"optimized_model_filepath": str(path)})
    open_session(compiled.model_path, runtime)
    shipped = Counter(node.op_type for node in onnx.load(str(path)).graph.node)
    assert Counter(node.op_type for node in profile.graph.node) == shipped


def test_nothing_is_left_behind(compiled: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    profile_bundle(compiled, tokens=4, runs=1, threads=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("roberta-prelayernorm", CodaConfig(reduction=2, attention="k_to_all")),
        ("mpnet", CodaConfig(reduction=1)),
        ("distilbert", CodaConfig(reduction=4, bottleneck=0, routed_layers=(1,))),
    ],
)
def test_other_forms_are_traced_too(family: str, config: CodaConfig, tmp_path: Path):
    bundle = compile(tiny_coda(family, config), output=tmp_path / "bundle")
    assert profile_bundle(bundle, runs=1, threads=1).unattributed == 0


def test_what_cannot_be_traced_is_told(profile: Profile):
    lost = Kernel("ReorderInput_1", "ReorderInput", "CPUExecutionProvider", None, profile.kernel_seconds / 3)
    assert replace(profile, kernels=(*profile.kernels, lost)).unattributed == pytest.approx(0.25)
    assert replace(profile, kernels=()).unattributed == 0


_CALLS = """
<ir_version: 10, opset_import: ["" : 20, "ai.coda" : 1]>
agraph (float[N] x) => (float[N] z) {
  y = ai.coda.Twice(x)
  z = ai.coda.Twice(y)
}
<domain: "ai.coda", opset_import: ["" : 20]>
Twice (a) => (c) { b = Abs(a) c = Add(b, b) }
"""


def _graph(*nodes: tuple[str, str, str]) -> onnx.GraphProto:
    made = [onnx.helper.make_node("Any", read.split(), written.split(), name=name) for name, read, written in nodes]
    return onnx.helper.make_graph(made, "optimised", [], [])


def _tagged_calls() -> onnx.ModelProto:
    model = onnx.parser.parse_model(_CALLS)
    for layer, node in enumerate(model.graph.node):
        node.name = f"call{layer}"
        node.metadata_props.add(key="coda.layer", value=str(layer))
        node.metadata_props.add(key="coda.role", value="adapter")
    return model


def test_a_body_whose_last_node_was_fused_is_known_by_what_it_reads():
    found = trace(
        _tagged_calls(),
        _graph(("p_coda-body.Twice.0.", "x", "p_b"), ("fused", "p_b", "y"), ("q_coda-body.Twice.0.", "y", "q_b")),
    )
    assert found["p_coda-body.Twice.0."] == Place(0, "adapter", "Twice")
    assert found["fused"] == Place(0, "adapter")
    assert found["q_coda-body.Twice.0."] == Place(1, "adapter", "Twice")


def test_what_is_written_counts_before_what_is_read():
    shared = _graph(("p_coda-body.Twice.0.", "y", "p_b"), ("p_coda-body.Twice.1.", "p_b", "y"))
    assert set(trace(_tagged_calls(), shared).values()) == {Place(0, "adapter", "Twice")}


def test_a_node_fused_inside_a_body_is_known_by_its_tensor():
    found = trace(_tagged_calls(), _graph(("new", "x", "p_b"), ("p_coda-body.Twice.1.", "p_b", "y")))
    assert found["new"] == Place(0, "adapter", "Twice")


def test_nodes_of_unknown_origin_are_left_out():
    assert trace(_tagged_calls(), _graph(("new", "x", "reordered"), ("r_coda-body.Twice.0.", "n", "m"))) == {}


def test_longer_inputs_than_the_model_takes_are_refused(compiled: Bundle):
    with pytest.raises(CodaError, match="500 tokens are more than this model takes: give at most 66"):
        profile_bundle(compiled, tokens=500)


def test_a_damaged_model_is_refused(copied: Path):
    (copied / "model.onnx").write_bytes(b"no model")
    with pytest.raises(BundleError, match=r"model\.onnx is missing or damaged"):
        profile_bundle(Bundle(copied))
