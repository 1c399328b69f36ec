"""Finding nvcc and building the CUDA library; with nvcc, what its assembler says of the kernels."""

import re
import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from coda_ops import native
from coda_ops.native import KernelError, nvcc

NVCC = nvcc.find()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason=f"nvcc is missing: {nvcc.INSTALL}")


def program(path: Path, text: str) -> Path:
    """A shell script in the place of a compiler."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without nvcc."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(nvcc, "find_spec", lambda name: None)
    monkeypatch.setattr(native, "compiler", lambda: "g++")
    return tmp_path


def test_nvcc_is_found_on_path_in_cuda_home_and_in_packages(nowhere: Path, monkeypatch: pytest.MonkeyPatch):
    assert nvcc.find() is None
    packages = [program(nowhere / "nvidia" / name / "bin" / "nvcc", "") for name in ("cu12", "cu13")]

    class Spec:
        submodule_search_locations = (str(nowhere / "nvidia"),)

    monkeypatch.setattr(nvcc, "find_spec", lambda name: Spec)
    assert nvcc.find() == packages[1]
    home = program(nowhere / "home" / "bin" / "nvcc", "")
    monkeypatch.setenv("CUDA_HOME", str(nowhere / "home"))
    assert nvcc.find() == home
    on_path = program(nowhere / "path" / "nvcc", "")
    assert nvcc.find() == on_path


def test_what_building_for_cuda_lacks_is_said(nowhere: Path):
    with pytest.raises(KernelError) as caught:
        native.build_kernels(name="cuda")
    assert str(caught.value) == (
        'native kernels cannot be built: nvcc is missing: pip install "coda-compile[cuda-build]", or the CUDA toolkit '
        "with nvcc on PATH or in CUDA_HOME"
    )


def test_an_nvcc_that_fails_leaves_the_library_alone(nowhere: Path, monkeypatch: pytest.MonkeyPatch):
    kept = nowhere / "coda_ops_cuda.so"
    kept.write_text("an older one")
    monkeypatch.setitem(native.LIBRARIES, "cuda", native.Library("cuda", "NVIDIA GPUs", kept))
    path = program(
        nowhere / "path" / "nvcc", 'case "$1" in --list-gpu-arch) echo compute_90;; *) echo "error: no"; exit 1;; esac'
    )
    with pytest.raises(KernelError, match=r"^native kernels cannot be built, nvcc says: error: no$"):
        native.build_kernels(name="cuda")
    program(path, "echo compute_50")
    with pytest.raises(KernelError, match=r"knows none of our architectures"):
        native.build_kernels(name="cuda")
    assert kept.read_text() == "an older one"


def test_an_older_nvcc_is_asked_for_what_it_knows(tmp_path: Path):
    old = program(tmp_path / "nvcc", "printf 'compute_50\\ncompute_75\\ncompute_80\\n'")
    assert nvcc.architectures(old) == (75, 80)
    command = nvcc.command(old, tmp_path, tmp_path, tmp_path / "x.so", (75, 80))
    assert [part for part in command if "gencode" in part] == [
        "-gencode=arch=compute_75,code=sm_75",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_80,code=compute_80",
    ]
    assert "-cudart=static" in command


@needs_nvcc
@pytest.mark.slow
def test_no_kernel_spills_on_any_card(tmp_path: Path):
    assert NVCC is not None
    numbers = nvcc.architectures(NVCC)
    library = tmp_path / "coda_ops_cuda.so"
    command = nvcc.command(NVCC, native.HERE / "cuda", native.include_dir(), library, numbers)
    said = subprocess.run([*command, "-Xptxas=-v"], capture_output=True, text=True, check=True)
    text = said.stdout + said.stderr
    entries = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'", text)
    assert {int(number) for _, number in entries} == set(numbers)
    assert len({name for name, _ in entries}) == 13  # 2 of Route, 3 of TakeTokens, 8 of PutTokens and PutDifference
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
    assert len(frames) == len(entries)
    assert {number for frame in frames for number in frame} == {"0"}
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", text)]
    assert len(registers) == len(entries)
    assert max(registers) <= 64  # 4 blocks of 256 threads at once on every card
    # onnxruntime loads it where there is neither a GPU nor a driver.
    onnxruntime.SessionOptions().register_custom_ops_library(str(library))
    assert (
        shutil.which("ldd") is None
        or "libcuda" not in subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout
    )
