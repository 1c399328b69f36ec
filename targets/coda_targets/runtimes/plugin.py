"""Execution providers from packages of their own, registered with onnxruntime when needed."""

from importlib import import_module
from threading import Lock
from typing import Any

import onnxruntime as ort

from coda_ops.errors import first_line
from coda_targets.errors import TargetError
from coda_targets.runtimes import GPU, Runtime, nvidia

_registering = Lock()  # onnxruntime refuses a library that it has


def add(options: ort.SessionOptions, runtime: Runtime, threads: int) -> None:
    """Have a session run on a runtime's device by its plugin.

    Args:
        threads: 0 for the plugin's own choice.

    Raises:
        TargetError: it is not installed, or this onnxruntime cannot use it.
    """
    if threads and runtime.thread_option:
        runtime = runtime.with_options({runtime.thread_option: str(threads)})
    options.add_provider_for_devices([device(runtime)], runtime.provider_options)


def device(runtime: Runtime) -> Any:
    """The device as a runtime's plugin knows it, which is registered where it is not yet.

    Raises:
        TargetError: it is not installed, finds no such device, or this onnxruntime cannot use it.
    """
    provider, kind = runtime.preferred, runtime.device.upper()
    cannot = f"target {runtime.name!r} cannot run here"
    try:
        package = import_module(runtime.plugin)
    except ModuleNotFoundError:
        raise TargetError(f"{cannot}: {provider} is not installed: {runtime.install}") from None
    if runtime.device == GPU:
        nvidia.require_device(runtime)  # without a driver the plugin cannot be loaded
    try:
        with _registering:
            mine = not _devices(provider)  # an app may have registered it
            if mine:
                ort.register_execution_provider_library(provider, package.get_library_path())
            wanted = getattr(ort.OrtHardwareDeviceType, kind)
            found = [one for one in _devices(provider) if one.device.type == wanted]
            if mine and not found:  # or the next call would be told that it is registered already
                ort.unregister_execution_provider_library(provider)
    except AttributeError:  # before 1.23
        raise TargetError(
            f"{cannot}: onnxruntime {ort.__version__} takes no plugins: pip install -U onnxruntime"
        ) from None
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise TargetError(
            f"{cannot}: {runtime.plugin} cannot be loaded: {first_line(error)}; {runtime.install}"
        ) from None
    if runtime.index >= len(found):
        which = f"{kind} {runtime.index}" if runtime.index else f"{kind} that it can use"
        raise TargetError(f"{cannot}: {runtime.plugin} finds no {which}: use another target")
    return found[runtime.index]


def _devices(provider: str) -> list[Any]:
    return [one for one in ort.get_ep_devices() if one.ep_name == provider]
