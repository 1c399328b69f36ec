"""Native kernels that are there and cannot be loaded: a line says so, and function bodies run."""

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coda_compile.backends import get_backend
from coda_ops import native
from coda_ops.native import KernelWarning, Library
from coda_targets import Bundle, TargetError
from coda_targets.runtimes.session import load_kernels, usable_kernels

BUILT = native.LIBRARIES["cpu"].path
IDS = np.array([[2, 5, 3]])
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="makes libraries as Linux has them")
needs_kernels = pytest.mark.skipif(native.library() is None, reason="native kernels are not built")


def cut(share: float) -> Callable[[bytes], bytes]:
    """A library whose download or build stopped: the loader would map what is not there, and end the process."""
    return lambda whole: whole[: int(len(whole) * share)]


def of_another_processor(whole: bytes) -> bytes:
    return whole[:18] + (243 if whole[18] != 243 else 62).to_bytes(2, "little") + whole[20:]


def installed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(native.LIBRARIES, "cpu", Library("cpu", "CPUs", path))


DAMAGES = {
    "empty": lambda whole: b"",
    "cut within its head": lambda whole: whole[:40],
    "cut in half": cut(0.5),
    "cut near its end": cut(0.999),
    "of another processor": of_another_processor,
    "of another system": lambda whole: b"MZ" + whole[2:],
}


@on_linux
@needs_kernels
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_library_that_cannot_be_loaded(
    damage: str, compiled: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / BUILT.name
    path.write_bytes(DAMAGES[damage](BUILT.read_bytes()))
    installed(path, monkeypatch)
    with pytest.warns(KernelWarning) as said:
        answer = Bundle(compiled.folder).run({"input_ids": IDS})
    (sentence,) = {str(one.message) for one in said}
    assert sentence.startswith(f"onnxruntime cannot load the native kernels in {path}: ")
    assert sentence.endswith("or do without: CODA_KERNELS=portable; the model runs on its function bodies")
    assert "\n" not in sentence
    monkeypatch.setenv(native.SWITCH, "portable")
    for name, wanted in Bundle(compiled.folder).run({"input_ids": IDS}).items():
        np.testing.assert_array_equal(answer[name], wanted)


@on_linux
@pytest.mark.skipif(shutil.which("cc") is None, reason="makes a library")
def test_a_library_that_needs_a_newer_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, library = tmp_path / "newer.c", tmp_path / BUILT.name
    source.write_text("void of_a_later_glibc(void); void RegisterCustomOps(void) { of_a_later_glibc(); }")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-z,now", str(source), "-o", str(library)], check=True)
    installed(library, monkeypatch)
    monkeypatch.delenv(native.SWITCH, raising=False)
    with pytest.warns(KernelWarning, match="undefined symbol: of_a_later_glibc"):
        assert usable_kernels("cpu") is None
    with pytest.raises(TargetError, match="undefined symbol"):  # as `kernels status` says it
        load_kernels(library)


@on_linux
@needs_kernels
def test_nothing_is_verified_on_kernels_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / BUILT.name
    path.write_bytes(cut(0.5)(BUILT.read_bytes()))
    installed(path, monkeypatch)
    with pytest.warns(KernelWarning, match="its end is missing"):
        assert get_backend("cpu").with_kernels() is None


@needs_kernels
def test_a_whole_library_is_loaded_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usable_kernels("cpu") == BUILT
    assert not native.is_cut(BUILT)
