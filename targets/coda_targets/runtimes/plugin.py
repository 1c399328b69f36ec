"""Execution providers from packages of their own, registered with onnxruntime when needed.

OpenVINO's is the one that targets use.
"""

import json
from importlib import import_module
from typing import Any

import onnxruntime as ort

from coda_ops.errors import first_line
from coda_targets.errors import TargetError
from coda_targets.runtimes import Runtime


def add(options: ort.SessionOptions, runtime: Runtime, threads: int) -> None:
    """Have a session run on this machine's CPU by a runtime's plugin.

    Args:
        threads: 0 for the plugin's own choice.

    Raises:
        TargetError: it is not installed, or this onnxruntime cannot use it.
    """
    settings = runtime.options
    chosen = {**settings, "INFERENCE_NUM_THREADS": str(threads)} if threads else settings
    options.add_provider_for_devices([device(runtime)], {"load_config": json.dumps({"CPU": chosen})})


def device(runtime: Runtime) -> Any:
    """The CPU as a runtime's plugin knows it, which is registered where it is not yet.

    Raises:
        TargetError: it is not installed, or this onnxruntime cannot use it.
    """
    provider = runtime.preferred
    cannot = f"target {runtime.name!r} cannot run here"
    try:
        package = import_module(runtime.plugin)
    except ModuleNotFoundError:
        raise TargetError(f"{cannot}: {provider} is not installed: {runtime.install}") from None
    try:
        mine = not _devices(provider)  # an app may have registered it
        if mine:
            ort.register_execution_provider_library(provider, package.get_library_path())
        found = [one for one in _devices(provider) if one.device.type == ort.OrtHardwareDeviceType.CPU]
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
    if not found:
        raise TargetError(f"{cannot}: {runtime.plugin} finds no CPU that it can use: use another target")
    return found[0]


def _devices(provider: str) -> list[Any]:
    return [one for one in ort.get_ep_devices() if one.ep_name == provider]
