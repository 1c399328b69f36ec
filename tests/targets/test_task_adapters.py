"""Files of tasks: the same tensors give the same bytes, and a run takes them in the place of the model's own."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from coda_targets.errors import BundleError
from coda_targets.runtimes.session import run_session
from coda_targets.task_adapters import TaskAdapter, path_of, write


@pytest.fixture
def session() -> ort.InferenceSession:
    """y = x · W, W [4, labels] free to be overridden."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("W", TensorProto.FLOAT, [4, "labels"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "labels"])],
        [numpy_helper.from_array(np.ones((4, 3), np.float32), "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def weights(labels: int) -> NDArray[np.float32]:
    return np.random.default_rng(labels).normal(size=(4, labels)).astype(np.float32)


def test_runs_take_turns(session: ort.InferenceSession, tmp_path: Path):
    x = np.eye(4, dtype=np.float32)
    adapters: dict[int, TaskAdapter | None] = {3: None}
    for labels in (2, 5):
        write(tmp_path / f"{labels}", {"W": weights(labels)})
        adapters[labels] = TaskAdapter(tmp_path / f"{labels}")
    for labels in (2, 3, 5, 2):
        wanted = np.ones((4, 3)) if labels == 3 else weights(labels)
        np.testing.assert_allclose(run_session(session, ["y"], {"x": x}, adapters[labels])[0], wanted, rtol=1e-6)


def test_same_tensors_same_bytes(tmp_path: Path):
    a, b = weights(2), weights(3)
    write(tmp_path / "first", {"a": a, "b": b})
    write(tmp_path / "second", {"b": b, "a": a})
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"hello", bytes(1000)])
def test_files_that_are_none(tmp_path: Path, content: bytes | None):
    path = tmp_path / "x.onnx_adapter"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"x\.onnx_adapter is missing or damaged: .*; compile the task again"):
        TaskAdapter(path)


def test_where_a_bundle_keeps_a_task():
    assert path_of("moods") == "adapters/moods.onnx_adapter"
