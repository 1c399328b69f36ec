"""The commands for native kernels."""

from pathlib import Path

import pytest
from tests.compiler.commands import Call

from coda_ops import native
from coda_ops.native import nvcc


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a C++ compiler and CMake, without nvcc and kernels."""
    for name, library in native.LIBRARIES.items():
        missing = native.Library(name, library.processors, tmp_path / name)
        monkeypatch.setitem(native.LIBRARIES, name, missing)
    monkeypatch.setenv(native.SWITCH, "auto")
    monkeypatch.setattr(nvcc, "find", lambda: None)
    monkeypatch.setattr(native, "compiler", lambda: "g++")
    monkeypatch.setattr(native.shutil, "which", lambda name: name)


@pytest.mark.usefixtures("bare")
def test_status_says_of_each_library_what_it_lacks(call: Call):
    assert call("kernels", "status").worked().splitlines() == [
        "no native kernels for CPUs here: bundles run on their function bodies",
        "  next: coda-compile kernels build --target cpu",
        "no native kernels for NVIDIA GPUs here: bundles run on their function bodies",
        f"  nvcc is missing: {nvcc.INSTALL}",
    ]


@pytest.mark.usefixtures("bare")
def test_building_for_gpus_needs_nvcc(call: Call):
    refused = call("kernels", "build", "--target", "cuda").refused()
    assert refused == f"native kernels cannot be built: nvcc is missing: {nvcc.INSTALL}"


def test_switched_off_is_all_there_is_to_say(call: Call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(native.SWITCH, "portable")
    assert call("kernels", "status").worked() == "CODA_KERNELS is portable: bundles run on their function bodies\n"
