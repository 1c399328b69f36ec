"""coda.json: what it says, what it refuses."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coda_compile.cli import summaries
from coda_ops.errors import CodaError
from coda_targets import Bundle, BundleError
from coda_targets.bundle_files import check_files, hash_file, list_files
from coda_targets.manifest import MANIFEST, LogitsInfo, Manifest, SessionInfo, VariantInfo, read_manifest
from coda_targets.modalities.text import text_signature

SIGNATURE = json.loads(json.dumps(dataclasses.asdict(text_signature(100, 66, types=2))))


def edit(folder: Path, **changes: Any) -> None:
    plain = json.loads((folder / MANIFEST).read_text("utf-8"))
    (folder / MANIFEST).write_text(json.dumps({**plain, **changes}), "utf-8")


def edit_variant(folder: Path, **changes: Any) -> None:
    """Edit what the manifest says of the only variant."""
    (variant,) = json.loads((folder / MANIFEST).read_text("utf-8"))["variants"]
    edit(folder, variants=[{**variant, **changes}])


def test_round_trip(compiled: Bundle, tmp_path: Path):
    manifest = read_manifest(compiled.folder)
    (tmp_path / MANIFEST).write_text(manifest.dump(), "utf-8")
    assert read_manifest(tmp_path) == manifest
    assert (tmp_path / MANIFEST).read_bytes() == (compiled.folder / MANIFEST).read_bytes()


def test_says_what_was_compiled(compiled: Bundle):
    manifest = compiled.manifest
    assert (manifest.task, manifest.architecture) == ("sequence-classification", "bert")
    assert manifest.signature == text_signature(100, 66, types=2)
    assert [(o.name, o.dtype, o.shape) for o in manifest.outputs] == [("logits", "float32", ("batch", 3))]
    assert manifest.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert manifest.logits == LogitsInfo("softmax", "single_label_classification")
    assert [(x.reduction, x.attention, x.slots) for x in manifest.layers] == [("2", "k_to_k", 33)] * 2
    assert (manifest.width, manifest.feed_forward) == (32, 48)
    assert manifest.coda_config["reduction"] == "2"
    (variant,) = manifest.variants
    assert (variant.name, variant.target, variant.precision) == ("cpu", "cpu", "fp32")
    assert (variant.models, variant.external_bytes) == ({"model": "model.onnx"}, 0)
    assert variant.operators["ai.coda::Route"] == 2
    assert variant.session == SessionInfo(("CPUExecutionProvider",), "all", 0, kernels="cpu")


def test_manifest_is_frozen(compiled: Bundle):
    with pytest.raises(dataclasses.FrozenInstanceError):
        compiled.manifest.width = 1  # type: ignore[misc]


def test_lists_every_file_but_itself(compiled: Bundle):
    present = {p.relative_to(compiled.folder).as_posix() for p in compiled.folder.rglob("*") if p.is_file()}
    assert {file.path for file in compiled.manifest.files} == present - {MANIFEST}
    assert list_files(compiled.folder) == compiled.manifest.files


def test_no_manifest(tmp_path: Path):
    with pytest.raises(BundleError, match=r"is no bundle: it has no coda\.json; make one with coda-compile"):
        Bundle(tmp_path)


def test_absent_folder(tmp_path: Path):
    with pytest.raises(BundleError, match=r"is no bundle"):
        Bundle(tmp_path / "nowhere")


def test_file_instead_of_a_folder(compiled: Bundle):
    with pytest.raises(BundleError, match=r"is a file, not a bundle folder"):
        Bundle(compiled.model_path)


def test_manifest_that_is_a_folder(tmp_path: Path):
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(BundleError, match=r"cannot be read: Is a directory"):
        Bundle(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b'{"schema_version": 1', b"\xff\xfe", b"[" * 100_000])
def test_damaged_json(copied: Path, text: bytes):
    (copied / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match=r"is no manifest of a bundle: it is not JSON; compile the model again$"):
        Bundle(copied)


def test_cut_off_json(copied: Path):
    text = (copied / MANIFEST).read_bytes()
    (copied / MANIFEST).write_bytes(text[: len(text) // 2])
    with pytest.raises(BundleError, match=r"is not JSON"):
        Bundle(copied)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_other_schema_version(copied: Path, version: Any):
    edit(copied, schema_version=version)
    with pytest.raises(
        BundleError, match=r"has schema version .*, this release reads a manifest of a bundle of version 1$"
    ):
        Bundle(copied)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"'])
def test_json_that_is_no_object(copied: Path, text: str):
    (copied / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"has schema version None"):
        Bundle(copied)


@pytest.mark.parametrize("name", sorted(field.name for field in dataclasses.fields(Manifest)))
def test_missing_field(copied: Path, name: str):
    plain = json.loads((copied / MANIFEST).read_text("utf-8"))
    del plain[name]
    (copied / MANIFEST).write_text(json.dumps(plain))
    with pytest.raises(BundleError, match=name.replace("_", ".")):
        Bundle(copied)


def test_layers_of_earlier_releases_have_no_stand_ins(copied: Path):
    layers = [dataclasses.asdict(layer) for layer in read_manifest(copied).layers]
    for layer in layers:
        del layer["stand_in"], layer["key_value_rank"]
    edit(copied, layers=layers)
    assert [(layer.stand_in, layer.key_value_rank) for layer in Bundle(copied).manifest.layers] == [(0, 0)] * 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", None),
        ("task", 3),
        ("signature", 3),
        ("signature", {**SIGNATURE, "max_length": "66"}),
        ("signature", {**SIGNATURE, "max_length": True}),
        ("signature", {**SIGNATURE, "max_length": 0}),
        ("signature", {**SIGNATURE, "modality": None}),
        ("signature", {**SIGNATURE, "inputs": []}),
        ("signature", {**SIGNATURE, "inputs": [{"name": "input_ids"}]}),
        ("signature", {**SIGNATURE, "inputs": [{**SIGNATURE["inputs"][0], "name": 1}]}),
        ("signature", {**SIGNATURE, "inputs": [{**SIGNATURE["inputs"][0], "dtype": "int65"}]}),
        ("signature", {**SIGNATURE, "inputs": [{**SIGNATURE["inputs"][0], "role": "words"}]}),
        ("logits", None),
        ("logits", {"activation": "tanh", "problem_type": "regression"}),
        ("logits", {"activation": "none", "problem_type": "ranking"}),
        ("logits", {"activation": "none"}),
        ("labels", []),
        ("layers", [{}]),
        ("layers", [3]),
        ("layers", [{"reduction": 2, "attention": "k_to_k", "bottleneck": 8, "slots": 3}]),
        ("layers", [{"reduction": "2", "attention": "k_to_k", "bottleneck": 8, "slots": 3, "stand_in": "4"}]),
        ("layers", [{"reduction": "2", "attention": "k_to_k", "bottleneck": 8}]),
        ("files", [{"path": 3, "bytes": 1, "sha256": ""}]),
        ("files", [{"path": "model.onnx"}]),
        ("files", [{"path": "model.onnx", "bytes": "1", "sha256": ""}]),
        ("labels", None),
        ("labels", [1]),
        ("layers", []),
        ("width", 0),
        ("layers", [{"reduction": "0", "attention": "k_to_k", "bottleneck": 8, "slots": 3}]),
        ("layers", [{"reduction": "2/0", "attention": "k_to_k", "bottleneck": 8, "slots": 3}]),
        ("variants", []),
        ("variants", [{}]),
        ("schema", 1),
        ("logits", {"activation": "softmax", "problem_type": "single_label_classification", "temperature": 1}),
    ],
)
def test_field_of_a_wrong_type(copied: Path, name: str, value: Any):
    edit(copied, **{name: value})
    with pytest.raises(BundleError, match=r"coda\.json is damaged: .*; compile the model again$"):
        Bundle(copied)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", ""),
        ("name", "../cpu"),
        ("name", "cpu/int8"),
        ("target", None),
        ("precision", 8),
        ("models", {}),
        ("models", {"model": 1}),
        ("models", {"encoder": "model.onnx"}),
        ("models", {"model": "absent.onnx"}),
        ("models", {"model": "model.onnx", "other": "model.onnx"}),
        ("external_bytes", -1),
        ("external_bytes", 1.5),
        ("opset", []),
        ("opset", {}),
        ("opset", {"": "20"}),
        ("minimum_onnxruntime", "newest"),
        ("bucket", 128),
        ("session", None),
        ("session", {"providers": ["CPUExecutionProvider"]}),
        ("session", {"providers": [1], "graph_level": "all", "threads": 0, "kernels": "cpu"}),
        ("session", {"providers": [], "graph_level": "most", "threads": 0, "kernels": "cpu"}),
        ("session", {"providers": [], "graph_level": "all", "threads": -1, "kernels": "cpu"}),
        ("session", {"providers": [], "graph_level": "all", "threads": 10**9, "kernels": "cpu"}),
        ("session", {"providers": [], "graph_level": "all", "threads": 0, "kernels": 1}),
        ("session", {"providers": [], "graph_level": "all", "threads": 0, "kernels": "abacus"}),
        (
            "session",
            {"providers": [], "graph_level": "all", "threads": 0, "kernels": "cpu", "profile_file_prefix": "x"},
        ),
    ],
)
def test_variant_that_makes_no_sense(copied: Path, name: str, value: Any):
    edit_variant(copied, **{name: value})
    with pytest.raises(BundleError, match=r"coda\.json is damaged: .*; compile the model again$"):
        Bundle(copied)


@pytest.mark.parametrize("changes", [{}, {"name": "other"}, {"name": "other", "precision": "int8"}])
def test_two_variants_that_are_one(copied: Path, changes: dict[str, str]):
    (variant,) = json.loads((copied / MANIFEST).read_text("utf-8"))["variants"]
    edit(copied, variants=[variant, {**variant, **changes}])
    with pytest.raises(BundleError, match=r"its field 'variants' makes no sense"):
        Bundle(copied)


@pytest.mark.parametrize("name", sorted(field.name for field in dataclasses.fields(VariantInfo)))
def test_missing_field_of_a_variant(copied: Path, name: str):
    plain = json.loads((copied / MANIFEST).read_text("utf-8"))
    del plain["variants"][0][name]
    (copied / MANIFEST).write_text(json.dumps(plain))
    with pytest.raises(BundleError, match=name):
        Bundle(copied)


def test_model_outside_of_the_bundle(copied: Path):
    edit_variant(copied, models={"model": "../model.onnx"})
    with pytest.raises(BundleError, match=r"lies outside the bundle: do not use this bundle"):
        Bundle(copied)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(field.name for field in dataclasses.fields(Manifest))), value=junk)
def test_no_junk_escapes_as_another_error(compiled: Bundle, tmp_path: Path, name: str, value: Any):
    plain = json.loads((compiled.folder / MANIFEST).read_text("utf-8"))
    (tmp_path / MANIFEST).write_text(json.dumps({**plain, name: value}))
    with contextlib.suppress(CodaError):
        summaries.inspected(Bundle(tmp_path))


def test_unknown_target_in_a_manifest(copied: Path):
    edit_variant(copied, target="abacus")
    with pytest.raises(CodaError, match=r"target 'abacus' is unknown"):
        _ = Bundle(copied).session


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "..", "", ".", "a\\..\\..\\x", "C:\\x", "sub/../../bundle/model.onnx"]
)
def test_path_that_leaves_the_bundle(copied: Path, name: str):
    edit(copied, files=[{"path": name, "bytes": 1, "sha256": "0" * 64}])
    with pytest.raises(BundleError, match=r"lies outside the bundle: do not use this bundle"):
        Bundle(copied)


def test_loop_of_links(copied: Path):
    (copied / "model.onnx").unlink()
    (copied / "model.onnx").symlink_to("model.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        Bundle(copied).check()


def test_bundle_behind_a_link_is_fine(compiled: Bundle, tmp_path: Path):
    (tmp_path / "latest").symlink_to(compiled.folder)
    Bundle(tmp_path / "latest").check()


def test_intact_files_pass(compiled: Bundle):
    compiled.check()
    check_files(compiled.folder, compiled.manifest)


def _every_file(folder: Path) -> list[Path]:
    return [folder / file.path for file in read_manifest(folder).files]


def test_every_missing_file_is_found(copied: Path):
    for path in _every_file(copied):
        kept = path.read_bytes()
        path.unlink()
        with pytest.raises(BundleError, match=r"is missing: compile the model again") as caught:
            Bundle(copied).check()
        assert str(path) in str(caught.value)
        path.write_bytes(kept)
    Bundle(copied).check()


def test_every_changed_byte_is_found(copied: Path):
    for path in _every_file(copied):
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(BundleError, match=r"is damaged: its SHA-256 is not the manifest's") as caught:
            Bundle(copied).check()
        assert str(path) in str(caught.value)
        path.write_bytes(kept)


@pytest.mark.parametrize("left", [0, 1, 50])
def test_every_cut_off_file_is_found(copied: Path, left: int):
    for path in _every_file(copied):
        kept = path.read_bytes()
        assert len(kept) > left
        path.write_bytes(kept[:left])
        with pytest.raises(BundleError, match=rf"is damaged: {left} bytes where the manifest says {len(kept)}"):
            Bundle(copied).check()
        path.write_bytes(kept)


def test_hash_of_known_bytes(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
