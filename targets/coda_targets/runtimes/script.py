"""Opening a model without this package: the lines of Python that do it, for scripts that are left behind."""

import json
from dataclasses import replace

from coda_targets.runtimes import DEFAULT_TARGET, Runtime, get_runtime

_SESSION = 'session = ort.InferenceSession(here / "model.onnx", providers={providers!r})'
_NATIVE_SESSION = """from coda_ops import native

settings = ort.SessionOptions()
settings.register_custom_ops_library(str(native.LIBRARY))
session = ort.InferenceSession(here / "model.onnx", settings, providers={providers!r})"""
_PLUGIN_SESSION = """ort.register_execution_provider_library({provider!r}, __import__({plugin!r}).get_library_path())
devices = [one for one in ort.get_ep_devices() if one.ep_name == {provider!r}]
settings = ort.SessionOptions()
settings.add_provider_for_devices(
    [one for one in devices if one.device.type == ort.OrtHardwareDeviceType.CPU], {{"load_config": {config!r}}}
)
session = ort.InferenceSession(here / "model.onnx", settings)"""


def session_lines(runtime: Runtime | None = None) -> str:
    """Lines that make ``session`` of ``model.onnx`` in the folder ``here``, where onnxruntime is imported as ``ort``.

    Args:
        runtime: with its providers and native kernels, in one thread on a plugin; by default the one of every machine.
    """
    runtime = runtime or replace(get_runtime(DEFAULT_TARGET), native=False)
    if runtime.plugin:
        config = json.dumps({"CPU": {**runtime.options, "INFERENCE_NUM_THREADS": "1"}})
        return _PLUGIN_SESSION.format(provider=runtime.preferred, plugin=runtime.plugin, config=config)
    lines = _NATIVE_SESSION if runtime.native else _SESSION
    return lines.format(providers=[name for name, _ in runtime.providers])
