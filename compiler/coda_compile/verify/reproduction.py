"""What a failed verification leaves behind: enough to reproduce it without the original model."""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from coda_compile.bundling.replace_folder import replacing
from coda_targets import Target
from coda_targets.bundle import MODEL, Arrays

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
_SESSION = 'session = ort.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])'
_NATIVE_SESSION = """from coda_ops import native

settings = ort.SessionOptions()
settings.register_custom_ops_library(str(native.LIBRARY))
session = ort.InferenceSession(here / "model.onnx", settings, providers=["CPUExecutionProvider"])"""
_PLUGIN_SESSION = """ort.register_execution_provider_library({provider!r}, __import__({plugin!r}).get_library_path())
devices = [one for one in ort.get_ep_devices() if one.ep_name == {provider!r}]
settings = ort.SessionOptions()
settings.add_provider_for_devices(
    [one for one in devices if one.device.type == ort.OrtHardwareDeviceType.CPU], {{"load_config": {config!r}}}
)
session = ort.InferenceSession(here / "model.onnx", settings)"""


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
    target: Target | None = None,
) -> None:
    """Write the model, the input, both sides' outputs and a script.

    Args:
        folder: replaced when it is there from an earlier failure.
        adapter: of the task that failed, where the model file holds another.
        target: where it failed: a provider that is none of onnxruntime's own, or its own with native kernels.
        expected: torch's outputs; empty when routing failed before there were any.
    """
    with replacing(folder) as new:
        for path in model.parent.glob(f"{model.name}*"):
            shutil.copy(path, new / path.name)
        if adapter is not None:
            shutil.copy(adapter, new / _ADAPTER)
        for name, arrays in (("inputs", inputs), ("expected", expected), ("actual", actual)):
            np.savez(new / f"{name}.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub confuses names and flags
        (new / REPRODUCE).write_text(_SCRIPT.replace("{session}", _session(target)), "utf-8")


def _session(target: Target | None) -> str:
    if target is None or not target.plugin:
        return _NATIVE_SESSION if target is not None and target.native else _SESSION
    provider, options = target.providers[0]
    config = json.dumps({"CPU": {**options, "INFERENCE_NUM_THREADS": "1"}})  # as it was verified
    return _PLUGIN_SESSION.format(provider=provider, plugin=target.plugin, config=config)
