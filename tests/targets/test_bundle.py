"""Running a bundle: its inputs, its defaults, its errors."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.targets.test_manifest import SIGNATURE, edit, edit_variant

from coda_compile.inspect.predict import predict
from coda_ops.errors import CodaError
from coda_targets import Bundle, BundleError, get_runtime
from coda_targets.errors import InputError, TargetError
from coda_targets.manifest import MANIFEST
from coda_targets.routing import RoutingProbe

IDS = np.array([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def test_outputs_by_name(compiled: Bundle):
    outputs = compiled.run({"input_ids": IDS, "attention_mask": MASK})
    assert list(outputs) == ["logits"]
    assert (outputs["logits"].dtype, outputs["logits"].shape) == (np.float32, (2, 3))
    assert np.isfinite(outputs["logits"]).all()


def test_no_mask_means_all_valid(compiled: Bundle):
    without = compiled.run({"input_ids": IDS})["logits"]
    np.testing.assert_array_equal(
        without, compiled.run({"input_ids": IDS, "attention_mask": np.ones_like(IDS)})["logits"]
    )
    assert np.abs(without - compiled.run({"input_ids": IDS, "attention_mask": MASK})["logits"]).max() > 1e-3


def test_no_token_types_means_zero(compiled: Bundle):
    full = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": np.zeros_like(IDS)}
    without = {name: array for name, array in full.items() if name != "token_type_ids"}
    np.testing.assert_array_equal(compiled.run(full)["logits"], compiled.run(without)["logits"])
    ones = compiled.run({**full, "token_type_ids": np.ones_like(IDS)})["logits"]
    assert np.abs(ones - compiled.run(full)["logits"]).max() > 1e-3


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.uint16])
def test_every_integer_type_is_taken(compiled: Bundle, dtype: Any):
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    expected = compiled.run(inputs)["logits"]
    got = compiled.run({name: array.astype(dtype) for name, array in inputs.items()})["logits"]
    np.testing.assert_array_equal(got, expected)


def test_boolean_mask_lists_and_strides_are_taken(compiled: Bundle):
    expected = compiled.run({"input_ids": IDS, "attention_mask": MASK})["logits"]
    got = compiled.run({"input_ids": IDS.tolist(), "attention_mask": MASK.astype(bool)})["logits"]
    np.testing.assert_array_equal(got, expected)
    strided = compiled.run({"input_ids": np.repeat(IDS, 2, axis=1)[:, ::2], "attention_mask": MASK})["logits"]
    np.testing.assert_array_equal(strided, expected)


def test_inputs_are_not_changed(compiled: Bundle):
    inputs = {"input_ids": IDS.copy(), "attention_mask": MASK.copy()}
    compiled.run(inputs)
    assert list(inputs) == ["input_ids", "attention_mask"]
    np.testing.assert_array_equal(inputs["input_ids"], IDS)


def test_unknown_name(compiled: Bundle):
    with pytest.raises(
        InputError, match=r"input 'position_ids' is unknown: this model takes input_ids, attention_mask"
    ):
        compiled.run({"input_ids": IDS, "position_ids": IDS})


def test_missing_ids(compiled: Bundle):
    with pytest.raises(InputError, match=r"input 'input_ids' is missing"):
        compiled.run({"attention_mask": MASK})


@pytest.mark.parametrize(
    "ids",
    [
        IDS.astype(np.float32),
        IDS.astype(str),
        IDS.astype(bool),
        IDS.astype(object),
        IDS[0],
        IDS[None],
        IDS[:, :0],
        IDS[:0],
        np.int64(3),
    ],
    ids=["float", "text", "bool", "object", "1-d", "3-d", "no tokens", "no examples", "scalar"],
)
def test_wrong_type_or_shape_of_ids(compiled: Bundle, ids: Any):
    with pytest.raises(InputError, match=r"input_ids must be integers of shape \[batch, sequence\], not "):
        compiled.run({"input_ids": ids})


def test_ragged_lists(compiled: Bundle):
    with pytest.raises(InputError, match=r"input_ids has rows of different lengths: pad them"):
        compiled.run({"input_ids": [[1, 2], [3]]})


@pytest.mark.parametrize("mask", [MASK[:, :4], MASK[:1], MASK[0], MASK[..., None]])
@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids"])
def test_shape_that_differs_from_ids(compiled: Bundle, name: str, mask: Any):
    with pytest.raises(InputError, match=rf"{name} has shape \[.*\] but input_ids has \[2, 5\]"):
        compiled.run({"input_ids": IDS, name: mask})


def test_mask_that_is_no_integer(compiled: Bundle):
    with pytest.raises(InputError, match=r"attention_mask must hold integers, not float64"):
        compiled.run({"input_ids": IDS, "attention_mask": MASK * 0.5})


def test_longest_and_one_more(compiled: Bundle):
    longest = compiled.manifest.signature.max_length
    assert compiled.run({"input_ids": np.full((1, longest), 5)})["logits"].shape == (1, 3)
    with pytest.raises(InputError, match=rf"has {longest + 1} tokens but this model takes at most {longest}: truncate"):
        compiled.run({"input_ids": np.full((1, longest + 1), 5)})


@pytest.mark.parametrize("value", [100, 10**9, -1, -101])
def test_ids_beyond_the_vocabulary(compiled: Bundle, value: int):
    ids = IDS.copy()
    ids[0, 1] = value
    with pytest.raises(InputError, match=r"^input_ids holds ids that this model does not know: it has 100 of them, "):
        compiled.run({"input_ids": ids})


def test_token_type_beyond_the_table(compiled: Bundle):
    with pytest.raises(InputError, match=r"^token_type_ids holds ids that this model does not know: it has 2 of them"):
        compiled.run({"input_ids": IDS, "token_type_ids": np.full_like(IDS, 7)})


def test_example_without_a_valid_token(compiled: Bundle):
    outputs = compiled.run({"input_ids": IDS, "attention_mask": np.array([[1] * 5, [0] * 5])})
    assert np.isfinite(outputs["logits"]).all()
    alone = compiled.run({"input_ids": IDS[:1]})["logits"]
    np.testing.assert_allclose(outputs["logits"][:1], alone, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 5), tokens=st.integers(1, 66), seed=st.integers(0, 2**32 - 1))
def test_every_shape_runs(compiled: Bundle, batch: int, tokens: int, seed: int):
    random = np.random.default_rng(seed)
    ids = random.integers(0, 100, (batch, tokens))
    mask = np.arange(tokens) < random.integers(1, tokens + 1, (batch, 1))
    logits = compiled.run({"input_ids": ids, "attention_mask": mask})["logits"]
    assert logits.shape == (batch, 3)
    assert np.isfinite(logits).all()


def test_repr_names_the_folder(compiled: Bundle):
    assert repr(compiled) == f"Bundle('{compiled.folder}', variant='cpu')"


def test_text_path_is_taken(compiled: Bundle):
    assert Bundle(str(compiled.folder)).manifest == compiled.manifest


def test_opening_loads_no_model(copied: Path):
    (copied / "model.onnx").unlink()
    bundle = Bundle(copied)
    with pytest.raises(BundleError, match=r"onnxruntime cannot load .*model\.onnx: ") as caught:
        bundle.run({"input_ids": IDS})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08"])
def test_model_that_is_none(copied: Path, content: bytes):
    (copied / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"onnxruntime cannot load .*model\.onnx: ") as caught:
        Bundle(copied).run({"input_ids": IDS})
    assert "\n" not in str(caught.value)


def test_cut_off_model(copied: Path):
    content = (copied / "model.onnx").read_bytes()
    (copied / "model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match=r"onnxruntime cannot load"):
        Bundle(copied).run({"input_ids": IDS})


def test_a_bundle_runs_after_it_was_moved(copied: Path, compiled: Bundle, tmp_path: Path):
    moved = copied.rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(
        Bundle(moved).run({"input_ids": IDS})["logits"], compiled.run({"input_ids": IDS})["logits"]
    )


def test_session_is_made_as_the_manifest_says(copied: Path):
    session = json.loads((copied / MANIFEST).read_text("utf-8"))["variants"][0]["session"]
    edit_variant(copied, session={**session, "graph_level": "basic", "threads": 2, "kernels": ""})
    bundle = Bundle(copied)
    options = bundle.session.get_session_options()
    assert (options.graph_optimization_level, options.intra_op_num_threads) == (
        ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        2,
    )
    assert not bundle.runtime.kernels
    assert Bundle(copied, threads=1).session.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize(
    ("minimum", "installed"), [("1.21.1", "1.21.0"), ("1.100", "1.32.0"), ("2", "1.32.0.dev20260101")]
)
def test_an_older_onnxruntime_is_refused(copied: Path, minimum: str, installed: str, monkeypatch: pytest.MonkeyPatch):
    """Patch by patch, and as numbers."""
    edit_variant(copied, minimum_onnxruntime=minimum)
    monkeypatch.setattr("coda_targets.runtimes.session.ort.__version__", installed)
    with pytest.raises(TargetError) as caught:
        _ = Bundle(copied).session
    assert str(caught.value) == (
        f"the model needs onnxruntime {minimum} or newer and {installed} is installed: "
        f'pip install --upgrade "onnxruntime>={minimum}"'
    )


@pytest.mark.parametrize(("minimum", "installed"), [("1.21.1", "1.21.1"), ("1.9.9", "1.21.1"), ("1.21", "1.21.0+cpu")])
def test_as_new_a_one_or_newer_is_taken(copied: Path, minimum: str, installed: str, monkeypatch: pytest.MonkeyPatch):
    edit_variant(copied, minimum_onnxruntime=minimum)
    monkeypatch.setattr("coda_targets.runtimes.session.ort.__version__", installed)
    assert Bundle(copied).runtime.name == "cpu"


def test_a_minimum_that_is_no_version_is_damage(copied: Path):
    edit_variant(copied, minimum_onnxruntime="newest")
    with pytest.raises(BundleError, match=r"its field 'minimum_onnxruntime' makes no sense"):
        Bundle(copied)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"device": 1}, "target 'cpu' has one device and all of its memory: leave device and memory_limit out"),
        ({"memory_limit": 1 << 30}, "target 'cpu' has one device and all of its memory"),
        ({"cuda_graph": True}, "target 'cpu' has no CUDA graphs: leave cuda_graph out, or choose another target"),
        ({"device": -1}, "device -1 cannot be: devices count from 0"),
    ],
)
def test_what_only_gpus_have_is_refused_elsewhere(compiled: Bundle, asked: dict[str, Any], sentence: str):
    bundle = Bundle(compiled.folder, **asked)
    assert sentence in bundle.lacks(bundle.variant)
    with pytest.raises(TargetError) as caught:
        bundle.run({"input_ids": IDS})
    assert str(caught.value).startswith(sentence)


def test_warm_up_runs_each_shape_once(compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    bundle, seen = Bundle(compiled.folder), []
    run = bundle.run
    monkeypatch.setattr(bundle, "run", lambda inputs: seen.append(inputs["input_ids"].shape) or run(inputs))
    bundle.warm_up([(1, 4), (2, 7), (1, 4)])
    assert seen == [(1, 4), (2, 7)]
    monkeypatch.setattr("coda_targets.bundle.open_session", None)
    assert bundle.session.get_inputs()


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((0, 4), "a batch of 0 x 4 cannot be: both are at least 1"),
        ((1, -1), "a batch of 1 x -1 cannot be"),
        ((1, 999), "but this model takes at most"),
    ],
)
def test_warm_up_refuses_what_the_model_does_not_take(compiled: Bundle, shape: tuple[int, int], sentence: str):
    with pytest.raises(InputError, match=sentence):
        Bundle(compiled.folder).warm_up([shape])


class Graphs:
    """CUDA graphs that always give zeros."""

    def run(self, feed: dict[str, Any]) -> list[Any]:
        return [np.zeros((len(feed["input_ids"]), 3), np.float32)]


def graphed(compiled: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(Bundle, "session", None)
    monkeypatch.setattr("coda_targets.bundle.CudaGraphs", lambda *_: Graphs())
    monkeypatch.setattr("coda_targets.bundle.require_runtime", lambda runtime: None)
    able = dataclasses.replace(get_runtime("cpu"), captures=True)
    monkeypatch.setattr("coda_targets.bundle.get_runtime", lambda name: able)
    return Bundle(compiled.folder, cuda_graph=True)


def test_cuda_graphs_run_in_the_place_of_the_session(compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    bundle = graphed(compiled, monkeypatch)
    assert not bundle.run({"input_ids": IDS})["logits"].any()
    assert bundle.runtime.cuda_graph is False  # what others open by it feeds itself
    with pytest.raises(InputError, match=r"^17 shapes are to be captured and 16 can be: warm up fewer$"):
        bundle.warm_up((1, 1 + i) for i in range(17))


def test_a_task_is_not_swapped_into_cuda_graphs(compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    bundle = graphed(compiled, monkeypatch)
    monkeypatch.setattr(bundle, "adapter", lambda task: None if task is None else object())
    monkeypatch.setattr(Bundle, "tasks", ("first", "second"))
    bundle.run({"input_ids": IDS})
    with pytest.raises(TargetError, match=r"^CUDA graphs hold the task 'first' alone: open .* without cuda_graph to"):
        bundle.run({"input_ids": IDS}, task="second")


@pytest.mark.parametrize("operator", ["ai.coda::PackTokens", "NonZero"])
def test_shapes_that_depend_on_values_are_not_captured(
    compiled: Bundle, monkeypatch: pytest.MonkeyPatch, operator: str
):
    """A graph would go on with the shapes of the run in which it was captured, and give wrong numbers."""
    bundle = graphed(compiled, monkeypatch)
    bundle.variant = dataclasses.replace(bundle.variant, operators={operator: 1})
    with pytest.raises(
        TargetError, match=rf"cannot be captured .* behind its {operator} depend on values: leave cuda_"
    ):
        bundle.run({"input_ids": IDS})


@pytest.mark.parametrize("threads", [-1, 1025, 99_999_999])
def test_more_threads_than_any_machine_has(compiled: Bundle, threads: int):
    with pytest.raises(InputError, match=rf"^{threads} threads cannot be: give 0 for .*, or at most 1024$"):
        Bundle(compiled.folder, threads=threads).run({"input_ids": IDS})


OTHER_INPUTS = [{**one, "name": f"other_{one['name']}"} for one in SIGNATURE["inputs"]]
LOGITS = {"name": "logits", "dtype": "float32", "shape": ["batch", 3]}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"signature": {**SIGNATURE, "inputs": OTHER_INPUTS}}, "other_input_ids"),
        ({"outputs": [{**LOGITS, "shape": ["batch", 7]}]}, "logits"),
        ({"outputs": [LOGITS, {**LOGITS, "name": "scores"}]}, "scores"),
        ({"task": "token-classification", "outputs": [{**LOGITS, "shape": ["batch", "sequence", 3]}]}, "logits"),
    ],
)
def test_a_manifest_of_another_model(copied: Path, changes: dict[str, Any], name: str):
    edit(copied, **changes)
    bundle = Bundle(copied)
    for use in (lambda: bundle.session, lambda: RoutingProbe.of(bundle)):
        with pytest.raises(
            BundleError, match=rf"model.onnx does not have '{name}' as coda.json says, so they are of two"
        ):
            use()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", MANIFEST])
def test_a_pipe_in_a_bundle_is_not_waited_for(copied: Path, name: str):
    (copied / name).unlink()
    os.mkfifo(copied / name)
    with pytest.raises(CodaError, match=rf"{name} is (no file: compile the model again|a pipe, a device or a socket)"):
        next(predict(Bundle(copied), ["good"]))
