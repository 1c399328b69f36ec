"""The commands for native kernels."""

from pathlib import Path

import pytest
from tests.compiler.commands import Call
from tests.targets.test_manifest import edit_variant

from coda_compile.cli import summaries
from coda_ops import native
from coda_ops.native import nvcc
from coda_targets import Bundle


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


NOT_BUILT = "  native kernels for CPUs are not built, and it runs slower without: "
BUILD = "coda-compile kernels build --target cpu"


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_bundle_that_would_run_faster_says_so_once(call: Call, compiled: Bundle, command: str):
    assert [line for line in said(call, command, compiled) if "kernels" in line] == [NOT_BUILT + BUILD]


@pytest.mark.usefixtures("bare")
def test_so_does_compiling(compiled: Bundle, capsys: pytest.CaptureFixture[str]):
    summaries.compiled(compiled, compiled.folder, 1.0)
    *_, line, last = capsys.readouterr().out.splitlines()
    assert line == NOT_BUILT + BUILD
    assert last.startswith("  next: ")


@pytest.mark.usefixtures("bare")
def test_and_what_building_lacks(call: Call, compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "compiler", lambda: None)
    said_here = said(call, "verify", compiled)[-1]
    assert said_here == f"{NOT_BUILT}a C++ compiler is missing: apt-get install g++; then {BUILD}"


@pytest.mark.usefixtures("bare")
def test_nothing_is_said_where_kernels_are_switched_off(call: Call, compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(native.SWITCH, "portable")
    assert "kernels" not in "".join(said(call, "inspect", compiled))


@pytest.mark.usefixtures("bare")
def test_nothing_is_said_of_operators_that_have_no_kernels(call: Call, copied: Path):
    edit_variant(copied, operators={"MatMul": 2})
    assert "kernels" not in "".join(said(call, "inspect", Bundle(copied)))


def said(call: Call, command: str, bundle: Bundle) -> list[str]:
    return call(command, str(bundle.folder)).worked().splitlines()
