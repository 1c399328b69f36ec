"""Lines that open a model without this package: they are Python, and open it as the runtime does."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from coda_ops import native
from coda_targets import Bundle, get_runtime
from coda_targets.runtimes.script import session_lines


def run(lines: str, here: Path, runtime: Any = ort) -> Any:
    names: dict[str, Any] = {"ort": runtime, "here": here}
    exec(lines, names)
    return names["session"]


def test_by_default_a_model_runs_on_every_machine(compiled: Bundle):
    session = run(session_lines(), compiled.folder)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session_lines() == session_lines(replace(get_runtime("cpu"), kernels=""))


def test_native_kernels_are_loaded_where_the_runtime_has_them(compiled: Bundle):
    lines = session_lines(get_runtime("cpu"))
    assert "register_custom_ops_library" in lines
    if native.library() is not None:
        assert [output.name for output in run(lines, compiled.folder).get_outputs()] == ["logits"]


def test_a_plugin_is_registered_with_the_runtimes_own_options(monkeypatch: pytest.MonkeyPatch):
    openvino, seen = get_runtime("openvino"), dict[str, Any]()
    cpu = SimpleNamespace(type=ort.OrtHardwareDeviceType.CPU)
    device = SimpleNamespace(ep_name=openvino.preferred, device=cpu)
    settings = SimpleNamespace(add_provider_for_devices=lambda found, options: seen.update(found=found, **options))
    fake = SimpleNamespace(
        OrtHardwareDeviceType=ort.OrtHardwareDeviceType,
        register_execution_provider_library=lambda name, path: seen.update(name=name, path=path),
        get_ep_devices=lambda: [device, SimpleNamespace(ep_name="another", device=cpu)],
        SessionOptions=lambda: settings,
        InferenceSession=lambda path, options: (path, options),
    )
    monkeypatch.setitem(__import__("sys").modules, openvino.plugin, SimpleNamespace(get_library_path=lambda: "ep.so"))
    assert run(session_lines(openvino), Path("folder"), fake) == (Path("folder/model.onnx"), settings)
    assert (seen["name"], seen["path"], seen["found"]) == (openvino.preferred, "ep.so", [device])
    assert json.loads(seen["load_config"])["CPU"] == {**openvino.options, "INFERENCE_NUM_THREADS": "1"}
