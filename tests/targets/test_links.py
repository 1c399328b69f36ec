"""Bundles whose files are links: as the hub's cache and Kubernetes keep them, and as nobody honest does."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from tests.compiler.verify.test_reference_vectors import accept

import coda_targets.manifest
from coda_compile.inspect.profile import profile_bundle
from coda_compile.verify.reference_vectors import verify_bundle
from coda_targets import Bundle, BundleError
from coda_targets.modalities.text import TextCodec
from coda_targets.routing import RoutingProbe

IDS = np.array([[2, 5, 6, 7, 3]])


def hub_cache(folder: Path, root: Path) -> Path:
    """As snapshot_download leaves it: ``snapshots/<commit>/<name>`` leads to ``blobs/<hash>``."""
    snapshot = root / "snapshots" / "0a1b"
    (root / "blobs").mkdir(parents=True)
    for i, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / "blobs" / str(i))
        link.symlink_to(Path(*[".."] * len(link.parent.relative_to(root).parts), "blobs", str(i)))
    return snapshot


def volume(folder: Path, root: Path) -> Path:
    """As Kubernetes mounts it: every name leads through ``..data`` to the version of the day."""
    shutil.copytree(folder, root / "..2026_11_28")
    (root / "..data").symlink_to("..2026_11_28")
    for path in folder.iterdir():
        (root / path.name).symlink_to(Path("..data", path.name))
    return root


def links_elsewhere(folder: Path, root: Path) -> Path:
    """Every folder a link out of the bundle, which onnxruntime is never asked to read from."""
    shutil.copytree(folder, root)
    (root / "test_data_set_0").rename(root.parent / "data")
    (root / "test_data_set_0").symlink_to("../data")
    return root


LAYOUTS = pytest.mark.parametrize("layout", [hub_cache, volume, links_elsewhere])


@LAYOUTS
def test_bundle_of_links_is_as_good(compiled: Bundle, tmp_path: Path, layout: Callable[[Path, Path], Path]):
    bundle = Bundle(layout(compiled.folder, tmp_path / "links"))
    expected = ort.InferenceSession(str(bundle.model_path)).run(None, compiled.prepare({"input_ids": IDS}))
    np.testing.assert_allclose(bundle.run({"input_ids": IDS})["logits"], expected[0], atol=1e-5)
    codec = TextCodec(bundle)
    np.testing.assert_array_equal(
        codec.encode(["good"]).inputs["input_ids"], TextCodec(compiled).encode(["good"]).inputs["input_ids"]
    )
    verify_bundle(bundle)


@LAYOUTS
def test_weights_beside_the_model_may_be_links(copied: Path, tmp_path: Path, layout: Callable[[Path, Path], Path]):
    model = onnx.load(str(copied / "model.onnx"))
    onnx.save_model(
        model, copied / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=1024
    )
    accept(copied)
    bundle = Bundle(layout(copied, tmp_path / "links"))
    np.testing.assert_array_equal(
        bundle.run({"input_ids": IDS})["logits"], Bundle(copied).run({"input_ids": IDS})["logits"]
    )
    verify_bundle(bundle)
    assert profile_bundle(bundle, tokens=4, runs=1).kernels


def leads_to(copied: Path, name: str, secret: str) -> Path:
    """A bundle whose file is a link to one that the reader may read, and the bundle's author may not."""
    path = copied.parent / "secret"
    path.write_text(secret)
    (copied / name).unlink()
    (copied / name).symlink_to(path)
    return copied


READERS = {
    "model.onnx": lambda bundle: bundle.session,
    "tokenizer.json": lambda bundle: TextCodec(bundle),
    "config.json": lambda bundle: bundle.check(),
    "expected.json": lambda bundle: verify_bundle(bundle),
}


@pytest.mark.parametrize("name", sorted(READERS))
def test_link_to_something_else_shows_nothing_of_it(copied: Path, name: str):
    bundle = Bundle(leads_to(copied, name, '{"model_type": "password-1234"}'))
    with pytest.raises(BundleError, match=rf"{name} is damaged: \d+ bytes where the manifest says") as caught:
        READERS[name](bundle)
    assert "1234" not in str(caught.value)


def test_link_to_another_model_is_not_run(copied: Path, compiled: Bundle, tmp_path: Path):
    content = (copied / "model.onnx").read_bytes()
    (tmp_path / "other.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (copied / "model.onnx").unlink()
    (copied / "model.onnx").symlink_to(tmp_path / "other.onnx")
    for read in (lambda: Bundle(copied).session, lambda: RoutingProbe.of(Bundle(copied))):
        with pytest.raises(BundleError, match=r"model\.onnx is damaged: its SHA-256 is not the manifest's"):
            read()


def test_files_in_their_place_are_not_hashed_to_be_opened(compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    """Hashing gigabytes is for ``verify``."""
    monkeypatch.setattr(coda_targets.bundle_files, "hash_file", lambda path: pytest.fail("hashed"))
    bundle = Bundle(compiled.folder)
    assert bundle.run({"input_ids": IDS})["logits"].shape == (1, 3)
    TextCodec(bundle)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret"])
def test_weights_that_the_model_itself_seeks_elsewhere_are_refused(copied: Path, location: str):
    model = onnx.load(str(copied / "model.onnx"))
    onnx.save_model(model, copied / "model.onnx", save_as_external_data=True, location="weights", size_threshold=1024)
    proto = onnx.load(str(copied / "model.onnx"), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (copied / "model.onnx").write_bytes(proto.SerializeToString())
    (copied.parent / "secret").write_bytes((copied / "weights").read_bytes())
    bundle = accept(copied)
    for read in (lambda: bundle.session, lambda: RoutingProbe.of(bundle)):
        with pytest.raises(BundleError):
            read()
