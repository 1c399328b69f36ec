"""A bundle proves itself with the test data that it carries."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from coda_compile.errors import VerificationError
from coda_compile.verify.first_token import selecting, through_first
from coda_compile.verify.parity import Tolerances
from coda_compile.verify.reference_vectors import (
    DATA_SET,
    EXPECTED,
    ROUTED,
    ReferenceVectors,
    read,
    verify_bundle,
    write,
)
from coda_ops.errors import CodaError
from coda_targets import Bundle, BundleError
from coda_targets.bundle_files import list_files
from coda_targets.errors import InputError
from coda_targets.manifest import MANIFEST, read_manifest
from coda_targets.modalities.text import text_signature
from coda_targets.routing import Decision, RoutingProbe

SIGNATURE = text_signature(100, 66, types=2)


def accept(folder: Path) -> Bundle:
    """Let the manifest vouch for whatever lies in the folder now."""
    honest = dataclasses.replace(read_manifest(folder), files=list_files(folder))
    (folder / MANIFEST).write_text(honest.dump(), "utf-8")
    return Bundle(folder)


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    plain = json.loads((folder / EXPECTED).read_text())
    change(plain)
    (folder / EXPECTED).write_text(json.dumps(plain))


def put(path: Path, array: np.ndarray, name: str) -> None:
    path.write_bytes(numpy_helper.from_array(array, name).SerializeToString())


def test_intact_bundle_passes(compiled: Bundle):
    result = verify_bundle(compiled)
    assert list(result.outputs) == ["logits"]
    assert result.outputs["logits"] < 5e-5
    assert (result.ties, result.skipped) == ([], 0)


def test_copied_and_moved_bundle_passes(copied: Path, tmp_path: Path):
    verify_bundle(Bundle(copied.rename(tmp_path / "moved")))


def test_every_damaged_file_is_refused(copied: Path):
    for file in read_manifest(copied).files:
        path = copied / file.path
        kept = path.read_bytes()
        for damaged in (kept[:-1], kept + b" ", kept[:-1] + bytes([kept[-1] ^ 0x80])):
            path.write_bytes(damaged)
            with pytest.raises(BundleError, match=r"is damaged") as caught:
                verify_bundle(Bundle(copied))
            assert str(path) in str(caught.value)
        path.write_bytes(kept)


@pytest.mark.parametrize("name", ["input_0.pb", "input_1.pb", "output_0.pb"])
@pytest.mark.parametrize("content", [b"no tensor", b"\x00\x01\x02", b"\xff" * 40], ids=["text", "bytes", "ones"])
def test_tensor_that_is_none(copied: Path, name: str, content: bytes):
    (copied / DATA_SET / name).write_bytes(content)
    with pytest.raises(BundleError, match=r"the test data of .* are damaged: .*; compile it again") as caught:
        verify_bundle(accept(copied))
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_tensor_is_refused(copied: Path):
    path = copied / DATA_SET / "output_0.pb"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CodaError) as caught:
            verify_bundle(accept(copied))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"tolerances": 3}', '{"tolerances": {}, "routing": 3}'])
def test_expected_that_is_none(copied: Path, text: str):
    (copied / EXPECTED).write_text(text)
    with pytest.raises(
        BundleError, match=r"expected\.json is (damaged|no record of test data): .*; compile the model again"
    ):
        verify_bundle(accept(copied))


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.pop("tolerances"),
        lambda plain: plain.pop("routing"),
        lambda plain: plain["tolerances"].update(scores="tight"),
        lambda plain: plain["routing"][0].pop("scores"),
        lambda plain: plain["routing"][0].pop("layer"),
        lambda plain: plain["routing"][0].update(layer="bottom"),
        lambda plain: plain["routing"][0]["scores"][0].append(1.0),
        lambda plain: plain["routing"][0]["scores"].append([1.0]),
        lambda plain: plain["routing"][0]["scores"][0].__setitem__(0, "high"),
        lambda plain: plain["routing"][0]["selected"].pop(),
        lambda plain: plain["routing"][0]["selected"][0].append(1000),
        lambda plain: plain["routing"][0]["selected"][2].append(36),
        lambda plain: plain["routing"][0].update(selected=None),
    ],
)
def test_damaged_field_of_expected(copied: Path, change: Callable[[Any], Any]):
    edit(copied, change)
    with pytest.raises(BundleError, match=r"(expected\.json is|the test data of .* are) damaged"):
        verify_bundle(accept(copied))


def test_absent_expected(copied: Path):
    (copied / EXPECTED).unlink()
    with pytest.raises(BundleError, match=r"expected\.json does not exist: compile the model again"):
        verify_bundle(accept(copied))


def test_absent_inputs(copied: Path):
    for path in (copied / DATA_SET).glob("input_*"):
        path.unlink()
    with pytest.raises(BundleError, match=r"the test data of .* are damaged"):
        verify_bundle(accept(copied))


def test_absent_outputs(copied: Path):
    (copied / DATA_SET / "output_0.pb").unlink()
    with pytest.raises(BundleError, match=rf"has no test data in {DATA_SET}"):
        verify_bundle(accept(copied))


@pytest.mark.parametrize("change", [lambda p: p["routing"].pop(), lambda p: p["routing"][0].update(layer=7)])
def test_routing_of_other_layers(copied: Path, change: Callable[[Any], Any]):
    edit(copied, change)
    with pytest.raises(BundleError, match=r"records routing of other layers than its model has"):
        verify_bundle(accept(copied))


def test_other_score(copied: Path):
    edit(copied, lambda plain: plain["routing"][1]["scores"][0].__setitem__(5, 77.0))
    with pytest.raises(VerificationError, match=r"scores of layer 1 differ by .* at example 0, position 5"):
        verify_bundle(accept(copied))


def test_other_selection(copied: Path):
    def swap(plain: Any) -> None:
        selected = plain["routing"][0]["selected"][0]
        selected[0] = next(i for i in range(37) if i not in selected)
        selected.sort()

    edit(copied, swap)
    with pytest.raises(VerificationError, match=r"selection of layer 0, example 0 differs at position"):
        verify_bundle(accept(copied))


def test_other_output(copied: Path):
    (_, expected) = read(copied, SIGNATURE)
    put(copied / DATA_SET / "output_0.pb", expected.outputs["logits"] + np.float32(0.01), "logits")
    with pytest.raises(VerificationError, match=r"logits differ by"):
        verify_bundle(accept(copied))


def test_output_of_another_name(copied: Path):
    (_, expected) = read(copied, SIGNATURE)
    put(copied / DATA_SET / "output_0.pb", expected.outputs["logits"], "scores")
    with pytest.raises(VerificationError, match=r"scores is missing"):
        verify_bundle(accept(copied))


def test_input_of_another_name(copied: Path):
    (inputs, _) = read(copied, SIGNATURE)
    put(copied / DATA_SET / "input_2.pb", inputs["token_type_ids"], "positions")
    with pytest.raises(InputError, match=r"input 'positions' is unknown"):
        verify_bundle(accept(copied))


def test_model_that_onnxruntime_cannot_load(copied: Path):
    (copied / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(BundleError, match=r"model\.onnx is missing or damaged"):
        verify_bundle(accept(copied))


def test_tie_is_explained_and_the_example_left_out(copied: Path):
    """Record that the compiling machine chose the runner-up, its score as good as equal."""
    (inputs, expected) = read(copied, SIGNATURE)
    scores, selected = expected.routing[0]
    valid = inputs["attention_mask"][0].astype(bool)
    out = [i for i in np.flatnonzero(valid) if i not in selected[0]]
    best_out = max(out, key=lambda i: scores[0, i])
    worst_in = min(selected[0], key=lambda i: scores[0, i])
    gap = float(scores[0, worst_in] - scores[0, best_out])

    def record(plain: Any) -> None:
        item = plain["routing"][0]
        item["selected"][0] = sorted([i for i in selected[0] if i != worst_in] + [int(best_out)])
        plain["tolerances"]["scores"] = gap  # as if arithmetic were this coarse

    edit(copied, record)
    mask = inputs["attention_mask"].astype(bool)
    probe = RoutingProbe.of(Bundle(copied), decided=True)
    chosen = [selecting(i, rows, 19, 37) for i, (_, rows) in read(copied, SIGNATURE)[1].routing.items()]
    put(copied / ROUTED / "output_0.pb", probe.run(inputs, None, through_first(chosen, mask))[0]["logits"], "logits")
    result = verify_bundle(accept(copied))
    assert {(tie.layer, tie.example, tie.position) for tie in result.ties} >= {(0, 0, worst_in), (0, 0, best_out)}
    assert result.skipped >= 1


def test_layout_is_onnxs_own(compiled: Bundle):
    data = compiled.folder / DATA_SET
    assert sorted(path.name for path in data.iterdir()) == ["input_0.pb", "input_1.pb", "input_2.pb", "output_0.pb"]
    model = onnx.load(str(compiled.model_path))
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for i, value in enumerate(values):
            assert onnx.TensorProto.FromString((data / f"{kind}_{i}.pb").read_bytes()).name == value.name


def test_round_trip(tmp_path: Path):
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    decision = Decision(
        1,
        np.array([[3.0, 1.0, 2.0], [5.0, 0.0, 0.0]], np.float32),
        np.array([[0, 2], [0, 1]]),
        np.ones((2, 2), np.float32),
        np.array([[True, True], [True, False]]),
    )
    inputs, outputs = {"input_ids": mask * 7, "attention_mask": mask}, {"logits": np.array([[0.5], [1.5]], np.float32)}
    write(tmp_path, ReferenceVectors(inputs, mask.astype(bool), outputs, [decision], outputs, Tolerances()))
    got, expected = read(tmp_path, SIGNATURE)
    for name, array in inputs.items():
        np.testing.assert_array_equal(got[name], array)
    np.testing.assert_array_equal(expected.outputs["logits"], outputs["logits"])
    assert expected.tolerances == Tolerances()
    scores, selected = expected.routing[1]
    np.testing.assert_array_equal(scores, [[3, 1, 2], [5, 0, 0]])
    assert selected == [[0, 2], [0]]
    plain = json.loads((tmp_path / EXPECTED).read_text())
    assert plain["routing"][0]["margins"] == [1.0, None]


def test_bundle_without_routing_verifies_too(copied: Path):
    """A dense model has no decisions to record."""
    proto = onnx.load(str(copied / "model.onnx"))
    assert any(node.op_type == "Route" for node in proto.graph.node)
    edit(copied, lambda plain: plain["routing"].clear())
    with pytest.raises(BundleError, match=r"records routing of other layers"):
        verify_bundle(accept(copied))
    shutil.rmtree(copied / DATA_SET)
    with pytest.raises(BundleError, match=r"test data"):
        verify_bundle(accept(copied))
