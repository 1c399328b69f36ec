"""Files that reproduce a failed verification without the original model."""

import os
import shutil
from pathlib import Path

import numpy as np

from coda_compile.bundling.replace_folder import replacing
from coda_targets.bundle import MODEL, Arrays
from coda_targets.runtimes import Runtime
from coda_targets.runtimes.script import session_lines

REPRODUCE = "reproduce.py"
_ADAPTER = "task.onnx_adapter"
_NAMES = (REPRODUCE, _ADAPTER, "inputs.npz", "expected.npz", "actual.npz")  # beside the model
_SCRIPT = '''"""Run the failing input again: python reproduce.py (needs onnxruntime and numpy)."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

here = Path(__file__).parent
inputs, expected = np.load(here / "inputs.npz"), np.load(here / "expected.npz")
{session}
options = ort.RunOptions()
if (here / "task.onnx_adapter").exists():
    task = ort.LoraAdapter()
    task.Load(str(here / "task.onnx_adapter"))
    options.add_active_adapter(task)
outputs = session.run(None, dict(inputs), options)
for output, value in zip(session.get_outputs(), outputs):
    if output.name in expected:
        print(f"{output.name}: largest difference {np.abs(value - expected[output.name]).max():.3g}")
    else:
        print(f"{output.name}: {value}")
'''


def failure_folder(output: Path) -> Path:
    """Where a failed build of ``output`` is kept: never a folder that something else made."""
    folder = output.with_name(f"{output.name}-failed")
    number = 1
    while os.path.lexists(folder) and not _is_ours(folder):
        number += 1
        folder = output.with_name(f"{output.name}-failed-{number}")
    return folder


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds what ``keep_failure`` wrote, and nothing else."""
    if folder.is_symlink() or not folder.is_dir() or not (folder / REPRODUCE).is_file():
        return False
    names = {path.name for path in folder.iterdir()}
    return all(name in _NAMES or name.startswith(MODEL) for name in names) and (
        (folder / REPRODUCE).read_bytes().startswith(_SCRIPT.splitlines()[0].encode())
    )


def keep_failure(
    folder: Path,
    model: Path,
    inputs: Arrays,
    expected: Arrays,
    actual: Arrays,
    *,
    adapter: Path | None = None,
    runtime: Runtime | None = None,
) -> None:
    """Write the model, the input, both sides' outputs and a script.

    Args:
        folder: replaced when it is there from an earlier failure.
        adapter: of the task that failed, where the model file holds another.
        runtime: where it failed, with native kernels or without; by default on function bodies, on a CPU.
        expected: torch's outputs; empty when routing failed before there were any.
    """
    with replacing(folder) as new:
        for path in model.parent.glob(f"{model.name}*"):
            shutil.copy(path, new / path.name)
        if adapter is not None:
            shutil.copy(adapter, new / _ADAPTER)
        for name, arrays in (("inputs", inputs), ("expected", expected), ("actual", actual)):
            np.savez(new / f"{name}.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub confuses names and flags
        (new / REPRODUCE).write_text(_SCRIPT.replace("{session}", session_lines(runtime)), "utf-8")
