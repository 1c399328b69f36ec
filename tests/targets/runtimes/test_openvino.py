"""Runtime openvino: what must hold without the plugin, and, marked slow, what OpenVINO itself does."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tests.targets.test_manifest import edit_variant

from coda_targets import Bundle, BundleError, TargetError, get_runtime
from coda_targets.manifest import MANIFEST
from coda_targets.runtimes import plugin
from coda_targets.runtimes.session import open_session

INSTALL = "pip install onnxruntime-ep-openvino"
RUNTIME = get_runtime("openvino")


def missing() -> str:
    """What this machine lacks to run OpenVINO in onnxruntime, or nothing."""
    if find_spec("onnxruntime_ep_openvino") is None:
        return INSTALL
    vendors = {one.device.vendor_id for one in ort.get_ep_devices() if one.ep_name == "CPUExecutionProvider"}
    return "" if 0x8086 in vendors else "OpenVINO's plugin finds Intel's processors alone"


needs_plugin = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture
def for_openvino(copied: Path) -> Path:
    """A bundle that says it was compiled for OpenVINO."""
    edit_variant(copied, target="openvino")
    return copied


def absent(name: str) -> Any:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_the_plugin_one_sentence_says_what_to_install(for_openvino: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plugin, "import_module", absent)
    sentence = rf"^target 'openvino' cannot run here: OpenVINOExecutionProvider is not installed: {INSTALL}$"
    with pytest.raises(TargetError, match=sentence):
        Bundle(for_openvino).run({"input_ids": np.array([[2, 5, 3]])})


@pytest.mark.parametrize(
    ("runtime", "sentence"),
    [
        ({}, r"onnxruntime 1\.22\.0 takes no plugins: pip install -U onnxruntime$"),
        ({"devices": [], "registers": True}, r"finds no CPU that it can use: use another target$"),
        ({"devices": []}, rf"onnxruntime_ep_openvino cannot be loaded: no such library; {INSTALL}$"),
    ],
    ids=["old onnxruntime", "no device", "damaged"],
)
def test_a_plugin_that_cannot_be_used(runtime: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch):
    registered: list[str] = []

    def register(name: str, path: str) -> None:
        if "registers" not in runtime:
            raise RuntimeError("no such library\nat line 3")
        assert name not in registered
        registered.append(name)

    fake = SimpleNamespace(__version__="1.22.0", OrtHardwareDeviceType=ort.OrtHardwareDeviceType)
    if "devices" in runtime:
        fake.get_ep_devices = lambda: runtime["devices"]
        fake.register_execution_provider_library = register
        fake.unregister_execution_provider_library = registered.remove
    monkeypatch.setattr(plugin, "ort", fake)
    monkeypatch.setattr(plugin, "import_module", lambda name: SimpleNamespace(get_library_path=lambda: "library.so"))
    for _ in range(2):  # and says the same when it is asked again
        with pytest.raises(TargetError, match=sentence):
            plugin.device(RUNTIME)


def test_the_manifest_says_how_a_session_is_made(for_openvino: Path):
    session = json.loads((for_openvino / MANIFEST).read_text("utf-8"))["variants"][0]["session"]
    edit_variant(for_openvino, session={**session, "options": {"INFERENCE_PRECISION_HINT": "f16"}})
    ((name, options),) = Bundle(for_openvino).runtime.providers
    assert (name, options) == ("OpenVINOExecutionProvider", {"INFERENCE_PRECISION_HINT": "f16"})
    assert RUNTIME.options["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.slow
@needs_plugin
def test_what_openvino_does_not_take_is_an_error_and_runs_nowhere_else():
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("Normalizer", ["positive"], ["y"], domain="ai.onnx.ml", norm="L2"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=domains, ir_version=10)
    open_session(model.SerializeToString(), get_runtime("cpu"))
    with pytest.raises(BundleError, match=r"^onnxruntime cannot load the model: .*fallback to CPU EP has been"):
        open_session(model.SerializeToString(), RUNTIME)
