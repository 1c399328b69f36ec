"""Opening a model without this package: the lines of Python that do it, for scripts that are left behind."""

from dataclasses import replace

from coda_targets.runtimes import DEFAULT_TARGET, Runtime, get_runtime

_SESSION = 'session = ort.InferenceSession(here / "model.onnx", providers={providers!r})'
_NATIVE_SESSION = """from coda_ops import native

settings = ort.SessionOptions()
settings.register_custom_ops_library(str(native.LIBRARIES[{kernels!r}].path))
session = ort.InferenceSession(here / "model.onnx", settings, providers={providers!r})"""
_PLUGIN_SESSION = """ort.register_execution_provider_library({provider!r}, __import__({plugin!r}).get_library_path())
devices = [one for one in ort.get_ep_devices() if one.ep_name == {provider!r}]
settings = ort.SessionOptions()
settings.add_provider_for_devices(
    [one for one in devices if one.device.type == ort.OrtHardwareDeviceType.{kind}][{index}:][:1], {options!r}
)
session = ort.InferenceSession(here / "model.onnx", settings)"""


def session_lines(runtime: Runtime | None = None) -> str:
    """Lines that make ``session`` of ``model.onnx`` in the folder ``here``, where onnxruntime is imported as ``ort``.

    Args:
        runtime: with its providers and native kernels, in one thread on a plugin; by default the one of every machine.
    """
    runtime = runtime or replace(get_runtime(DEFAULT_TARGET), kernels="")
    if runtime.plugin:
        one_thread = runtime.with_options({runtime.thread_option: "1"} if runtime.thread_option else {})
        return _PLUGIN_SESSION.format(
            provider=runtime.preferred,
            plugin=runtime.plugin,
            kind=runtime.device.upper(),
            index=runtime.index,
            options=one_thread.provider_options,
        )
    lines = _NATIVE_SESSION if runtime.kernels else _SESSION
    providers = [(name, options) if options else name for name, options in runtime.providers]
    return lines.format(providers=providers, kernels=runtime.kernels)
