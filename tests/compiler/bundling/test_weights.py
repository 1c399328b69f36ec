"""Weights that several models share are stored once, and every model still holds the same numbers."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from coda_compile.bundling.weights import save_models
from coda_targets.manifest import WEIGHTS

SHARED = np.arange(512, dtype=np.float32)  # 2 KiB
OWN = {"a.onnx": np.ones(512, np.float32), "b.onnx": np.full(512, 2, np.float32)}
SMALL = np.zeros(8, np.float32)


def model(*weights: np.ndarray) -> ir.Model:
    """The sum of an input and its weights."""
    names = [f"w{i}" for i in range(len(weights))]
    nodes = [
        helper.make_node("Add", [before, name], [after])
        for before, name, after in zip(["x", *names[:-1]], names, [f"s{n}" for n in names], strict=True)
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(array, name) for array, name in zip(weights, names, strict=True)],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def loaded(path: Path) -> list[np.ndarray]:
    return [numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer]


def test_one_model_holds_its_weights(tmp_path: Path):
    alone = model(SHARED, SMALL)
    (file,) = save_models(tmp_path, {"model.onnx": alone})
    ir.save(alone, tmp_path / "expected.onnx")
    assert (file.path, file.external_bytes) == (tmp_path / "model.onnx", 0)
    assert file.path.read_bytes() == (tmp_path / "expected.onnx").read_bytes()
    assert not (tmp_path / WEIGHTS).exists()


def test_what_two_models_share_is_stored_once(tmp_path: Path):
    models = {file: model(SHARED, own, SMALL) for file, own in OWN.items()}
    files = save_models(tmp_path, models)
    assert (tmp_path / WEIGHTS).read_bytes() == SHARED.tobytes()
    assert [file.external_bytes for file in files] == [SHARED.nbytes] * 2
    for file, own in OWN.items():
        for actual, expected in zip(loaded(tmp_path / file), (SHARED, own, SMALL), strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_tensors_of_one_model_that_are_equal_stay_in_it(tmp_path: Path):
    save_models(tmp_path, {"a.onnx": model(SHARED, SHARED), "b.onnx": model(OWN["b.onnx"])})
    assert not (tmp_path / WEIGHTS).exists()


def test_models_are_left_as_they_were(tmp_path: Path):
    models = {file: model(SHARED, own) for file, own in OWN.items()}
    save_models(tmp_path, models)
    (tmp_path / WEIGHTS).unlink()
    for file, own in OWN.items():
        tensors = [value.const_value for value in models[file].graph.initializers.values()]
        for tensor, expected in zip(tensors, (SHARED, own), strict=True):
            assert tensor is not None
            np.testing.assert_array_equal(tensor.numpy(), expected)


def test_weights_begin_at_pages(tmp_path: Path):
    others = [np.full(600, i, np.float32) for i in range(3)]
    save_models(tmp_path, {file: model(*others) for file in OWN})
    proto = onnx.load(str(tmp_path / "b.onnx"), load_external_data=False)
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in proto.graph.initializer]
    assert [(place["location"], int(place["offset"])) for place in places] == [(WEIGHTS, i * 4096) for i in range(3)]


def test_a_large_model_keeps_no_weights_in_its_file(tmp_path: Path):
    files = save_models(tmp_path, {"a.onnx": model(SHARED, SHARED, SMALL), "b.onnx": model(SMALL)}, external_above=3000)
    assert [file.external_bytes for file in files] == [SHARED.nbytes, 0]
    assert (tmp_path / WEIGHTS).read_bytes() == SHARED.tobytes()  # once, though it stands there twice
    for actual in loaded(tmp_path / "a.onnx")[:2]:
        np.testing.assert_array_equal(actual, SHARED)


@pytest.mark.parametrize("override", [True, False])
def test_weights_that_a_run_may_override_stay_where_they_are(tmp_path: Path, override: bool):
    models = {file: model(SHARED) for file in OWN}
    for one in models.values() if override else ():
        one.graph.inputs.extend(one.graph.initializers.values())
    save_models(tmp_path, models)
    assert (tmp_path / WEIGHTS).exists() is not override


def test_same_bytes_every_time(tmp_path: Path):
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        save_models(tmp_path / place, {file: model(SHARED, own) for file, own in OWN.items()})
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
