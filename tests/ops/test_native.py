"""Native kernels are the function bodies, bit for bit in what they select; they can be built, and done without."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import astuple
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import CPU_KERNELS, open_node, route_attributes, run_node

from coda_ops import add_gelu, add_norm, cpu, embed_norm, native, put_tokens, route, take_tokens
from coda_ops.native import KernelError

needs_kernels = pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
ROOT = Path(__file__).parents[2]
AVX2 = {"avx2", "fma", "bmi2"} <= cpu.features()
examples = settings(max_examples=150, deadline=None, derandomize=True)
REDUCTIONS = ["1", "2", "4", "7/2", "9/8", "8", "100", "1001/1000"]


class Both:
    """Route as function body and as kernel, opened once for many inputs."""

    def __init__(self, reduction, final):
        like = {"scores": np.zeros((1, 1), np.float32), "mask": np.zeros((1, 1), bool)}
        schedule = route.Schedule(final=final)
        self.portable, self.kernel = (
            open_node(route.body(*astuple(schedule)), like, route_attributes(Fraction(reduction), schedule), library)
            for library in (None, CPU_KERNELS)
        )

    def compare(self, scores, mask):
        """Run both and compare; returns the largest difference of a gate."""
        inputs = {"scores": scores.astype(np.float32), "mask": mask}
        indices, gates, used = self.kernel.run(None, inputs)
        wanted_indices, wanted_gates, wanted_used = self.portable.run(None, inputs)
        np.testing.assert_array_equal(indices, wanted_indices)
        np.testing.assert_array_equal(used, wanted_used)
        np.testing.assert_allclose(gates, wanted_gates, rtol=0, atol=1e-6)
        return np.abs(gates - wanted_gates).max(initial=0)


def adversarial(rng, rows, tokens):
    """Rows of every kind that routing finds hard: ties, all equal, infinities, huge and tiny spreads, few valid tokens."""
    scores = rng.normal(size=(rows, tokens)) * rng.choice([1e-3, 1, 10, 1e3, 1e28], size=(rows, 1))
    kind = rng.integers(0, 6, size=(rows, 1))
    scores = np.where(kind == 1, np.round(scores / np.abs(scores).max() * 2), scores)
    scores = np.where(kind == 2, scores[:, :1], scores)
    scores = np.where(kind == 3, rng.choice([math.inf, -math.inf, 0.0, -0.0, 3e38], size=(rows, tokens)), scores)
    mask = rng.random((rows, tokens)) < rng.choice([0.05, 0.5, 0.95, 1.0], size=(rows, 1))
    only = rng.integers(0, tokens, size=(rows, 1))
    mask = np.where(kind == 4, np.arange(tokens) == only, mask)
    return scores.astype(np.float32), mask


@needs_kernels
@pytest.mark.parametrize("final", [0.03, 0.3, 1.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_route_is_its_body(reduction, final):
    both, rng = Both(reduction, final), np.random.default_rng(0)
    for tokens in (1, 2, 3, 8, 37, 64):
        both.compare(*adversarial(rng, 200, tokens))


@needs_kernels
@pytest.mark.slow
def test_route_is_its_body_on_a_million_rows():
    rng = np.random.default_rng(1)
    sessions = [Both(reduction, final) for reduction in REDUCTIONS for final in (0.03, 1.0)]
    rows = 0
    while rows < 1_000_000:
        for both in sessions:
            scores, mask = adversarial(rng, 2000, int(rng.integers(1, 80)))
            both.compare(scores, mask)
            rows += len(scores)


@needs_kernels
def test_route_at_the_length_of_real_texts():
    both = Both("4", 0.03)
    assert both.compare(*adversarial(np.random.default_rng(2), 64, 512)) < 1e-6


@needs_kernels
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, math.inf, -math.inf, 1e-45]), min_size=9, max_size=9), min_size=1
    ),
    st.integers(0, 2**9 - 1),
)
@examples
def test_ties_go_to_the_lowest_position(scores, bits):
    mask = np.tile([(bits >> i) & 1 == 1 for i in range(9)], (len(scores), 1))
    _TIES.compare(np.array(scores), mask)


_TIES = Both("7/2", 0.03) if native.library() is not None else None


@needs_kernels
def test_an_answer_does_not_depend_on_threads():
    rng = np.random.default_rng(3)
    scores, mask = adversarial(rng, 40, 300)
    schedule = route.Schedule()
    results = [
        run_node(
            route.body(*astuple(schedule)),
            {"scores": scores, "mask": mask},
            route_attributes(Fraction(4), schedule),
            CPU_KERNELS,
            threads,
        )
        for threads in (1, 4)
    ]
    for one, four in zip(*results, strict=True):
        assert one.tobytes() == four.tobytes()


def slots(seed, batch, tokens, count, width):
    """base, indices, gates, update: distinct indices, some gates 0."""
    rng = np.random.default_rng(seed)
    indices = np.stack([rng.permutation(tokens)[:count] for _ in range(batch)]).reshape(batch, count)
    gates = np.where(rng.random((batch, count)) < 0.3, 0, rng.random((batch, count))).astype(np.float32)
    base = rng.normal(size=(batch, tokens, width)).astype(np.float32)
    return base, indices, gates, rng.normal(size=(batch, count, width)).astype(np.float32)


@needs_kernels
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 40), st.integers(1, 70), st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_take_and_put_are_their_bodies(seed, batch, tokens, width, data):
    count = data.draw(st.integers(0, tokens))
    base, indices, gates, update = slots(seed, batch, tokens, count, width)
    inputs = {"x": base, "indices": indices}
    (taken,), (wanted,) = (run_node(take_tokens.body(), inputs, library=x) for x in (CPU_KERNELS, None))
    np.testing.assert_array_equal(taken, wanted)
    inputs = {"base": base, "indices": indices, "gates": gates, "update": update}
    (out,), (wanted,) = (run_node(put_tokens.body(), inputs, library=x) for x in (CPU_KERNELS, None))
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-6)  # a fused multiply-add rounds once
    untouched = np.ones(base.shape[:2], bool)
    np.put_along_axis(untouched, indices, gates == 0, axis=1)
    assert out[untouched].tobytes() == base[untouched].tobytes()
    before = np.random.default_rng(seed).normal(size=update.shape).astype(np.float32)
    inputs = {"base": base, "indices": indices, "gates": gates, "now": update, "before": before}
    (out,), (wanted,) = (run_node(put_tokens.difference_body(), inputs, library=x) for x in (CPU_KERNELS, None))
    np.testing.assert_allclose(out, wanted, rtol=0, atol=2e-6)
    assert out[untouched].tobytes() == base[untouched].tobytes()


@needs_kernels
def test_a_closed_gate_writes_nothing_and_large_texts_are_shared_among_threads():
    base, indices, gates, update = slots(0, 2, 500, 125, 384)
    update[gates == 0] = math.nan
    inputs = {"base": base, "indices": indices, "gates": gates, "update": update}
    given_ = inputs | {"now": update, "before": np.ones_like(update)}
    del given_["update"]
    for made, arrays in ((put_tokens.body(), inputs), (put_tokens.difference_body(), given_)):
        (one,), (four,) = (run_node(made, arrays, library=CPU_KERNELS, threads=n) for n in (1, 4))
        assert np.isfinite(one).all()
        assert one.tobytes() == four.tobytes()


@needs_kernels
def test_put_leaves_a_base_that_others_read_alone():
    """onnxruntime may hand the base over to be written into; not when it is read again."""
    domain = "ai.coda"
    text = f"""<ir_version: 10, opset_import: ["" : 18, "{domain}" : 1]>
    agraph (float[B, N, D] x, int64[B, K] indices, float[B, K] gates, float[B, K, D] update)
      => (float[B, N, D] out, float[B, N, D] kept)
    {{
      base = Neg(x)
      out = {domain}.PutTokens(base, indices, gates, update)
      kept = Abs(base)
    }}"""
    model = onnx.parser.parse_model(text)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(CPU_KERNELS))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    base, indices, gates, update = slots(1, 2, 12, 5, 8)
    out, kept = session.run(None, {"x": -base, "indices": indices, "gates": gates, "update": update})
    np.testing.assert_array_equal(kept, np.abs(base))
    (wanted,) = run_node(
        put_tokens.body(), {"base": base, "indices": indices, "gates": gates, "update": update}, library=CPU_KERNELS
    )
    np.testing.assert_array_equal(out, wanted)


@needs_kernels
@pytest.mark.parametrize("bad", [-1, 12, 2**40])
def test_an_index_outside_of_the_text_is_refused(bad):
    base, indices, gates, update = slots(2, 2, 12, 5, 8)
    indices[1, 3] = bad
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="outside of the sequence"):
        run_node(take_tokens.body(), {"x": base, "indices": indices}, library=CPU_KERNELS)
    inputs = {"base": base, "indices": indices, "gates": gates, "update": update}
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="outside of the sequence"):
        run_node(put_tokens.body(), inputs, library=CPU_KERNELS)


@needs_kernels
def test_shapes_that_do_not_fit_are_refused():
    base, indices, gates, update = slots(3, 2, 12, 5, 8)
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match="TakeTokens: x must be"):
        run_node(take_tokens.body(), {"x": base, "indices": indices[:1]}, library=CPU_KERNELS)
    for wrong in ({"gates": gates[:, :4]}, {"update": update[..., :7]}, {"indices": indices[:1]}):
        inputs = {"base": base, "indices": indices, "gates": gates, "update": update, **wrong}
        with pytest.raises(fails, match="PutTokens: base must be"):
            run_node(put_tokens.body(), inputs, library=CPU_KERNELS)
    for wrong in ({"now": update[:, :4]}, {"before": update[..., :7]}):
        inputs = {"base": base, "indices": indices, "gates": gates, "now": update, "before": update, **wrong}
        with pytest.raises(fails, match="PutDifference: base must be"):
            run_node(put_tokens.difference_body(), inputs, library=CPU_KERNELS)
    with pytest.raises(fails, match="scores and mask must both be"):
        run_node(
            route.body(*astuple(route.Schedule())),
            {"scores": np.zeros((2, 5), np.float32), "mask": np.ones((2, 4), bool)},
            route_attributes(Fraction(2), route.Schedule()),
            CPU_KERNELS,
        )


@needs_kernels
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"denominator": 3}, "r = numerator / denominator must be at least 1"),
        ({"denominator": 0}, "r = numerator / denominator must be at least 1"),
        ({"iterations": 0}, "iterations must be 1 to 1000"),
        ({"epsilon_final": 0.0}, "epsilons and their decay must be above 0"),
        ({"epsilon_start": math.inf}, "epsilon_start must be given as a finite number"),
    ],
)
def test_attributes_that_make_no_sense_are_refused(wrong, message):
    inputs = {"scores": np.zeros((1, 4), np.float32), "mask": np.ones((1, 4), bool)}
    attributes = {**route_attributes(Fraction(2), route.Schedule()), **wrong}
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException, match=f"Route: {message}"):
        open_node(route.body(*astuple(route.Schedule())), inputs, attributes, CPU_KERNELS)


def test_the_environment_switches_them_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CODA_KERNELS", "portable")
    assert [native.library(name) for name in native.LIBRARIES] == [None, None]
    monkeypatch.setenv("CODA_KERNELS", "fast")
    with pytest.raises(KernelError, match=r"^CODA_KERNELS is 'fast': set it to auto or portable$"):
        native.library()


@needs_kernels
@pytest.mark.skipif(not cpu.is_x86(), reason="names instruction sets of x86")
def test_a_lesser_machine_is_one_that_is_known(monkeypatch):
    inputs = {"x": np.ones((1, 4), np.float32), "bias": np.zeros(4, np.float32)}
    monkeypatch.setenv("CODA_ISA", "baseline")
    open_node(add_gelu.body(), inputs, library=CPU_KERNELS)
    monkeypatch.setenv("CODA_ISA", "avx3")
    with pytest.raises(
        Exception, match=r"CODA_ISA=avx3 is unknown: use baseline avx2 avx-vnni avx512 avx512-vnni amx-int8"
    ):
        open_node(add_gelu.body(), inputs, library=CPU_KERNELS)


def bytes_of_loops() -> dict[str, str]:
    """What the loops that are compiled for each level give, which sum in different orders or round once less."""
    rng = np.random.default_rng(0)
    names = ("words", "types", "positions", "x", "y", "shift", "scale", "bias")
    rows = {name: rng.normal(size=(3, 384)).astype(np.float32) for name in names}
    row = {name: rows[name][0] for name in ("shift", "scale", "bias")}
    ids = {name: np.arange(3).reshape(1, 3) for name in ("ids", "type_ids", "position_ids")}
    looked_up = {
        "ids": ids["ids"],
        "types": rows["types"],
        "type_ids": ids["type_ids"],
        "positions": rows["positions"],
        "position_ids": ids["position_ids"],
        "scale": row["scale"],
        "bias": row["bias"],
    }
    bytes_ = {"words": (rows["words"] * 30).astype(np.int8), "words_scale": rows["x"][:, :1]}
    base, indices, gates, update = slots(4, 2, 12, 5, 384)
    put = {"base": base, "indices": indices, "gates": gates}
    nodes = {
        "AddNorm": (add_norm.body(), {"x": rows["x"], "y": rows["y"], **row}, {"epsilon": 1e-5}),
        "AddGelu": (add_gelu.body(), {"x": rows["x"], "bias": row["bias"]}, None),
        "EmbedNorm": (embed_norm.body(), {"words": rows["words"], **looked_up}, {"epsilon": 1e-5}),
        "Int8EmbedNorm": (embed_norm.int8_body(), {**bytes_, **looked_up}, {"epsilon": 1e-5}),
        "PutTokens": (put_tokens.body(), {**put, "update": update}, None),
        "BlendTokens": (put_tokens.blend_body(), {**put, "now": update}, None),
        "PutDifference": (put_tokens.difference_body(), {**put, "now": update, "before": -update}, None),
    }
    return {name: run_node(*node, CPU_KERNELS)[0].tobytes().hex() for name, node in nodes.items()}


@needs_kernels
@pytest.mark.skipif(not AVX2, reason="needs AVX2")
def test_every_loop_is_what_a_lesser_machine_would_run():
    made = {}
    for isa in ("baseline", "avx2"):
        command = "import json; from tests.ops.test_native import bytes_of_loops; print(json.dumps(bytes_of_loops()))"
        environment = {**os.environ, "CODA_ISA": isa}
        done = subprocess.run(
            [sys.executable, "-c", command], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        made[isa] = json.loads(done.stdout)
    assert [name for name, given in made["baseline"].items() if given == made["avx2"][name]] == []


def headers(folder: Path, text: str) -> Path:
    """A folder that looks like onnxruntime's headers."""
    folder.mkdir()
    (folder / "onnxruntime_cxx_api.h").write_text(text)
    return folder


def test_what_building_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = headers(tmp_path / "include", "")
    tools = {"c++": "/usr/bin/c++", "cmake": "/usr/bin/cmake"}
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("ORT_INCLUDE_DIR", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name, **_: tools.get(name))
    assert native.missing(found) is None
    assert native.missing() is None  # ours
    monkeypatch.setenv("ORT_INCLUDE_DIR", str(found))
    assert native.include_dir() == found
    with pytest.raises(
        KernelError, match=r"^native kernels cannot be built: .* has no onnxruntime_cxx_api.h: name the"
    ):
        native.build_kernels(tmp_path / "nowhere")
    del tools["cmake"]
    assert native.missing(found) == "CMake is missing: apt-get install cmake, or pip install cmake"
    tools.clear()
    assert native.missing(found) == "a C++ compiler is missing: apt-get install g++"


@pytest.mark.skipif(native.compiler() is None or shutil.which("cmake") is None, reason="needs a compiler and CMake")
def test_a_failed_build_leaves_the_library_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = tmp_path / CPU_KERNELS.name
    kept.write_text("an older one")
    monkeypatch.setitem(native.LIBRARIES, "cpu", native.Library("cpu", "CPUs", kept))
    with pytest.raises(KernelError, match=r"^native kernels cannot be built, cmake says: .*wrong headers"):
        native.build_kernels(headers(tmp_path / "include", "#error wrong headers\n"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coda_ops.so", "include"]
    assert kept.read_text() == "an older one"


def test_the_headers_are_those_of_the_oldest_supported_release():
    """A library that asks for a newer API than the runtime has registers nothing there."""
    header = (native.include_dir() / "onnxruntime_c_api.h").read_text("utf-8")
    version = re.search(r"#define ORT_API_VERSION (\d+)", header)
    oldest = re.search(r'"onnxruntime>=1\.(\d+)', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert version is not None
    assert oldest is not None
    assert version[1] == oldest[1]
