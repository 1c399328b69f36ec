"""The library of native kernels as a guest of a process: what it shows of itself, and what it keeps."""

import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.ops.one_node import CPU_KERNELS, needs_int8_kernels
from tests.ops.test_native_limits import HEADS, ROOT, empty, int8_linear, open_kernel

from coda_ops import native

pytestmark = pytest.mark.skipif(native.library() is None, reason="native kernels are not built")


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm lists the symbols")
def test_it_exports_what_onnxruntime_calls_alone():
    """Templates of the standard library would be taken from it by libraries that are loaded later."""
    command = ["nm", "-D", "--defined-only", "--format=posix", str(CPU_KERNELS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["RegisterCustomOps"]


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("nm") is None, reason="nm lists the symbols")
def test_it_asks_for_nothing_that_systems_of_2018_lack():
    command = ["nm", "-D", "--undefined-only", "--with-symbol-versions", str(CPU_KERNELS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([0-9.]+)", done.stdout)}
    assert versions
    assert max(versions) <= (2, 28)  # as manylinux_2_28 has it


def memory() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * resource.getpagesize()


def attends():
    """One query over tokens whose keys and values take 32 MiB each."""
    inputs = {"query": empty(1, 1, 4096), "key_value": empty(1, 2048, 8192), "bias": empty(1, 1, 1, 2048)}
    return open_kernel("CrossAttention", inputs, {**HEADS, "num_heads": 1}), inputs


def multiplies():
    """Rows of 32 MiB in eight bits."""
    inputs = {**int8_linear(2048, 1), "x": empty(1, 2**14, 2048)}
    return open_kernel("Int8Linear", inputs, constants=("weight", "scale", "bias")), {"x": inputs["x"]}


def growth(make):
    """By how many bytes a process grows that runs large inputs behind small ones."""
    session, inputs = make()
    session.run(None, {name: x[:, :1] if x.ndim == 3 else x[..., :1] for name, x in inputs.items()})
    before = memory()
    for _ in range(2):
        (out,) = session.run(None, inputs)
    assert np.isfinite(out).all()
    return memory() - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("make", [attends, pytest.param(multiplies, marks=needs_int8_kernels)])
def test_large_working_memory_is_given_back(make):
    """In a process of its own: what others have freed before decides what the allocator gives back to the system."""
    command = f"from tests.ops.test_native_library import growth, {make.__name__}; print(growth({make.__name__}))"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**24
