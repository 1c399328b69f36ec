"""Tasks of one bundle: files in onnxruntime's adapter format, switched in for a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from coda_ops.errors import first_line
from coda_targets.errors import BundleError

_VERSION = 1


def path_of(task: str) -> str:
    """Where a bundle keeps a task."""
    return f"adapters/{task}.onnx_adapter"


def write(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write named tensors; the same ones give the same bytes."""
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(_VERSION)
    adapter.set_model_version(_VERSION)
    values = {name: ort.OrtValue.ortvalue_from_numpy(tensors[name]) for name in sorted(tensors)}
    adapter.set_parameters(values)
    adapter.export_adapter(str(path))


class TaskAdapter:
    """A task's tensors in memory, and the options of runs that use them.

    Raises:
        BundleError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._adapter = ort.LoraAdapter()  # the options do not keep it alive
        try:
            self._adapter.Load(str(path))
        except Exception as error:  # onnxruntime's own exceptions share no public base class
            raise BundleError(f"{path} is missing or damaged: {first_line(error)}; compile the task again") from None
        self.options = ort.RunOptions()
        self.options.log_severity_level = 3
        self.options.add_active_adapter(self._adapter)
