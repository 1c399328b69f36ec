"""What other libraries raise becomes one sentence."""

import errno
import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from coda_compile.errors import CodaError, CompileError, MissingDependencyError, OutputError, as_sentences
from coda_targets import task_adapters


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "^no space left on the disk writing here: free some and try again; nothing was kept$"),
        (errno.EDQUOT, "^no space left on the disk writing here"),
        (errno.EACCES, "^no permission for here: choose another folder$"),
        (errno.EROFS, "^no permission for here"),
        (errno.EPERM, "^no permission for here"),
        (errno.EIO, "^the operating system says 'broken' for here; nothing was kept$"),
        (errno.EFBIG, "^the operating system says 'broken' for here"),
    ],
)
def test_what_the_operating_system_refuses(number: int, message: str):
    with pytest.raises(OutputError, match=message), as_sentences():
        raise OSError(number, "broken", "here")


def test_without_a_file_name():
    with pytest.raises(OutputError, match="^no space left on the disk: free some"), as_sentences():
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_what_libraries_say_of_a_full_disk():
    with pytest.raises(OutputError, match="^no space left on the disk: free some"), as_sentences():
        torch.save({"weight": torch.zeros(1 << 16)}, "/dev/full")
    with pytest.raises(OutputError, match="^no space left on the disk: free some"), as_sentences():
        raise ValueError("I/O error: No space left on device (os error 28)")  # as safetensors quotes the system
    with pytest.raises(OutputError, match="^no space left on the disk: free some"), as_sentences():
        task_adapters.write(Path("/dev/full"), {"weight": np.zeros(1 << 16, np.float32)})
    with pytest.raises(OutputError, match="^no space left on the disk: free some"), as_sentences():
        raise shutil.Error([("from", "to", "[Errno 28] No space left on device")])  # as copytree does


def test_memory():
    with pytest.raises(CompileError, match="^out of memory: close other programs"), as_sentences():
        raise MemoryError


@pytest.mark.parametrize("name", ["torch", "transformers", "safetensors", "onnx_ir", "onnxscript"])
def test_absent_library(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(MissingDependencyError, match=rf'this needs {name}.*: pip install "coda-compile\[torch\]"$'),
        as_sentences(),
    ):
        importlib.import_module(name)


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'surprise'", name="surprise"),
        ModuleNotFoundError("nameless"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        ValueError("a defect of ours"),
        KeyboardInterrupt(),
    ],
)
def test_everything_else_passes(error: BaseException):
    with pytest.raises(type(error)) as caught, as_sentences():
        raise error
    assert caught.value is error


def test_our_own_errors_pass():
    with pytest.raises(CodaError, match="^mine$"), as_sentences():
        raise CodaError("mine")
