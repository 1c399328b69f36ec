"""Where failed builds are kept, and what is never overwritten for them."""

from pathlib import Path

import numpy as np
import pytest

from coda_compile.verify.reproduction import REPRODUCE, failure_folder, keep_failure
from coda_targets import get_runtime
from coda_targets.runtimes.script import session_lines

ARRAYS = {"x": np.arange(3)}


def keep(folder: Path, model: Path) -> None:
    keep_failure(folder, model, ARRAYS, {}, ARRAYS)


def test_beside_the_output(tmp_path: Path):
    assert failure_folder(tmp_path / "model-cpu") == tmp_path / "model-cpu-failed"


def test_earlier_failure_is_replaced(tmp_path: Path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"one")
    keep(failure_folder(tmp_path / "b"), model)
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    model.write_bytes(b"two")
    keep(failure_folder(tmp_path / "b"), model)
    assert (tmp_path / "b-failed" / "model.onnx").read_bytes() == b"two"
    assert (tmp_path / "b-failed" / "model.onnx.data").read_bytes() == b"weights"
    assert not (tmp_path / "b-failed-2").exists()


def test_somebody_elses_folder_or_file_is_never_touched(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"one")
    (tmp_path / "b-failed").mkdir()
    (tmp_path / "b-failed" / "notes.txt").write_text("precious")
    (tmp_path / "b-failed-2").write_text("a file")
    folder = failure_folder(tmp_path / "b")
    assert folder == tmp_path / "b-failed-3"
    keep(folder, tmp_path / "model.onnx")
    assert (tmp_path / "b-failed" / "notes.txt").read_text() == "precious"
    assert (tmp_path / "b-failed-2").read_text() == "a file"
    assert failure_folder(tmp_path / "b") == folder


@pytest.mark.parametrize("mine", ["notes.txt", "reproduce.py", "link"])
def test_earlier_failure_with_something_else_in_it_is_not_touched(tmp_path: Path, mine: str):
    (tmp_path / "model.onnx").write_bytes(b"one")
    keep(tmp_path / "b-failed", tmp_path / "model.onnx")
    if mine == "link":
        (tmp_path / "b-failed").rename(tmp_path / "elsewhere")
        (tmp_path / "b-failed").symlink_to("elsewhere")
    else:
        (tmp_path / "b-failed" / mine).write_text("precious")
    assert failure_folder(tmp_path / "b") == tmp_path / "b-failed-2"


def test_external_weights_are_kept_too(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    keep(tmp_path / "kept", tmp_path / "model.onnx")
    assert (tmp_path / "kept" / "model.onnx.data").read_bytes() == b"weights"
    np.testing.assert_array_equal(np.load(tmp_path / "kept" / "inputs.npz")["x"], ARRAYS["x"])


@pytest.mark.parametrize("name", [None, "cpu", "openvino"])
def test_the_script_runs_where_it_failed(tmp_path: Path, name: str | None):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    runtime = None if name is None else get_runtime(name)
    keep_failure(tmp_path / "kept", tmp_path / "model.onnx", ARRAYS, {}, ARRAYS, runtime=runtime)
    script = (tmp_path / "kept" / REPRODUCE).read_text("utf-8")
    compile(script, REPRODUCE, "exec")
    assert session_lines(runtime) in script
