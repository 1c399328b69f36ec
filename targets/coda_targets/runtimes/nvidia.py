"""NVIDIA GPUs in onnxruntime's own CUDA build: what has to be here, and what its failures mean.

onnxruntime lists a provider whose libraries or device are absent, and then runs on the CPU. So the driver is asked
itself, before any session is made.
"""

import ctypes
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from coda_ops import native
from coda_ops.distributions import installed_version
from coda_targets.errors import TargetError
from coda_targets.runtimes import Runtime

PROVIDER = "CUDAExecutionProvider"
_WITH_DEVICES = (PROVIDER, "TensorrtExecutionProvider")
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_LIBRARIES = ("libcudart.so.{cuda}", "libcublasLt.so.{cuda}", "libcublas.so.{cuda}", "libcurand.so.10", "libcudnn.so.9")
_PACKAGE, _CPU_PACKAGE = "onnxruntime-gpu", "onnxruntime"
_NO_DEVICE, _NOT_INITIALISED = 100, 3  # the driver's results
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # its attributes of devices
_NO_MEMORY = (
    "Failed to allocate memory",
    "Available memory of",
    "CUDA failure 2:",
    "cudaErrorMemoryAllocation",
    "STATUS_ALLOC_FAILED",
)
_NO_CODE = ("no kernel image is available", "cudaErrorNoKernelImageForDevice")
_NOT_CAPTURED = ("cannot use the graph capture feature", "stream is capturing", "cudaErrorStreamCapture")


def require(runtime: Runtime) -> None:
    """Check that onnxruntime's CUDA build, its libraries, a driver and the device are here.

    Raises:
        TargetError: which of them is not, and what to do.
    """
    found = ort.get_available_providers()
    for name, _ in runtime.providers:
        if name not in found:
            raise TargetError(f"{_cannot(runtime)}: {_absent(name, runtime)}")
    cuda = getattr(ort, "cuda_version", "").split(".")[0]
    require_device(runtime, cuda)
    if cuda and (missing := _missing_libraries(cuda)):
        raise TargetError(f"{_cannot(runtime)}: {', '.join(missing)} cannot be loaded: {runtime.install}")


def device_name(index: int) -> str:
    """What the driver calls a device; empty where it knows none."""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    found = _ask("cuDeviceGet", ctypes.byref(device), index) == 0
    found = found and _ask("cuDeviceGetName", name, len(name), device) == 0
    return name.value.decode(errors="replace") if found else ""


def providers(runtime: Runtime) -> list[tuple[str, dict[str, Any]]]:
    """Execution providers with their options, the runtime's device and memory limit among them."""
    made = []
    for name, options in runtime.providers:
        own = dict(options)
        if name in _WITH_DEVICES and runtime.index:  # onnxruntime warns where it is given the first
            own["device_id"] = str(runtime.index)
        if name == PROVIDER and runtime.memory_limit is not None:
            # By default its arena doubles, and would take up to twice as much as it needs.
            own |= {"gpu_mem_limit": str(runtime.memory_limit), "arena_extend_strategy": "kSameAsRequested"}
        if name == PROVIDER and runtime.cuda_graph:
            own["enable_cuda_graph"] = "1"
        made.append((name, own))
    return made


def why_not(runtime: Runtime) -> str:
    """Why onnxruntime made a session without the provider that it was asked for, as far as can be told."""
    kind = runtime.preferred.removesuffix("ExecutionProvider").lower()
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{kind}.so"
    try:
        if library.is_file():
            ctypes.CDLL(str(library))  # once more as onnxruntime did, which says why in its log alone
    except OSError as error:
        return f"{_cannot(runtime)}: {error}: {runtime.install}"
    return f"{_cannot(runtime)}: onnxruntime falls back to the CPU: {runtime.install}"


def explain(said: str, index: int, *, where: str = "") -> str:
    """What an error of onnxruntime means on a GPU, in one sentence; empty where that is not known.

    Args:
        said: the error's text.
        index: of the device.
        where: the model is, where it was being loaded; empty where it was run.
    """
    device = f"GPU {index} ({device_name(index)})" if device_name(index) else f"GPU {index}"
    if any(words in said for words in _NO_MEMORY):
        if where:
            return (
                f"{device} has too little memory for {where}: free some, allow more where memory_limit is set, or "
                "choose another device"
            )
        return (
            f"{device} has too little memory for this input: run smaller batches or shorter inputs, allow more where "
            "memory_limit is set, or choose another device"
        )
    if any(words in said for words in _NO_CODE):
        return _no_code(said, device, index)
    if any(words in said for words in _NOT_CAPTURED):
        what = where or "the model"
        return f"{what} cannot be captured as a CUDA graph, as the CPU takes part in a run: leave cuda_graph out"
    return ""


def _no_code(said: str, device: str, index: int) -> str:
    capability = ".".join(map(str, _capability(index)))
    library = native.LIBRARIES["cuda"]
    if any(f"running {name} node" in said for name in library.operators) and native.library(library.name):
        return (
            f"the native kernels in {library.path} hold no code for {device} of compute capability {capability}: build "
            f"them again with `coda-compile kernels build --target {library.name}`, or do without: "
            f"{native.SWITCH}=portable"
        )
    return (
        f"onnxruntime {ort.__version__} holds no code for {device} of compute capability {capability}: choose another "
        "device, or install another release"
    )


def _capability(index: int) -> Iterator[int]:
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        _ask("cuDeviceGetAttribute", ctypes.byref(value), attribute, index)
        yield value.value


def _cannot(runtime: Runtime) -> str:
    return f"target {runtime.name!r} cannot run here"


def _absent(provider: str, runtime: Runtime) -> str:
    """What to say where a provider is not in onnxruntime's build."""
    package, other = installed_version(_PACKAGE), installed_version(_CPU_PACKAGE)
    if package and other:
        return (
            f"{_CPU_PACKAGE} {other} overwrote files of {_PACKAGE} {package}, as both install the same ones: "
            f"pip uninstall -y {_CPU_PACKAGE} {_PACKAGE}, then {runtime.install}"
        )
    if other:
        return f"{provider} is not in {_CPU_PACKAGE} {other}: pip uninstall -y {_CPU_PACKAGE}, then {runtime.install}"
    return f"{provider} is not installed: {runtime.install}"


def require_device(runtime: Runtime, cuda: str = "") -> None:
    """Check that an NVIDIA driver and a runtime's device are here.

    Args:
        cuda: the major version of CUDA that is needed; empty where nobody says.

    Raises:
        TargetError: which of them is not, and what to do.
    """
    cannot = _cannot(runtime)
    if driver() is None:
        raise TargetError(
            f"{cannot}: there is no NVIDIA driver ({_DRIVER} cannot be loaded): install one, give the container its "
            "GPU (docker run --gpus all), or use another target"
        )
    error, version, count = _ask("cuInit", 0), ctypes.c_int(), ctypes.c_int()
    if error == _NOT_INITIALISED:
        raise TargetError(
            f"{cannot}: this process was forked from one that uses CUDA: open the bundle after the fork, or start "
            "processes by spawn"
        )
    if error not in (0, _NO_DEVICE):
        raise TargetError(f"{cannot}: the NVIDIA driver does not start (cuInit gives {error}): see nvidia-smi")
    _ask("cuDriverGetVersion", ctypes.byref(version))
    if cuda and 0 < version.value // 1000 < int(cuda):
        has = f"{version.value // 1000}.{version.value % 1000 // 10}"
        raise TargetError(
            f"{cannot}: onnxruntime {ort.__version__} is built for CUDA {cuda} and the NVIDIA driver goes up to {has}: "
            f"update the driver, or install an {_PACKAGE} that is built for CUDA {has.split('.')[0]}"
        )
    if error == 0:
        _ask("cuDeviceGetCount", ctypes.byref(count))
    if not count.value:
        raise TargetError(
            f"{cannot}: the NVIDIA driver finds no GPU: see nvidia-smi and CUDA_VISIBLE_DEVICES, or use another target"
        )
    if runtime.index >= count.value:
        there = "GPU 0 alone" if count.value == 1 else f"GPUs 0 to {count.value - 1}"
        raise TargetError(f"{cannot}: there is no GPU {runtime.index}: this process sees {there}, choose device there")


@cache
def driver() -> ctypes.CDLL | None:
    """NVIDIA's driver; ``None`` where there is none."""
    try:
        return ctypes.CDLL(_DRIVER)
    except OSError:
        return None


def _ask(function: str, *arguments: Any) -> int:
    """Call the driver; what it does not have fails like what it refuses."""
    found: Callable[..., int] | None = getattr(driver(), function, None)
    return -1 if found is None else int(found(*arguments))


@cache
def _missing_libraries(cuda: str) -> tuple[str, ...]:
    """Which of CUDA's and cuDNN's libraries cannot be loaded, once those that pip installed are."""
    with redirect_stdout(io.StringIO()):  # it prints what it cannot load
        ort.preload_dlls()
    if sys.platform == "win32":
        return ()  # it looks for them elsewhere, and why_not says what is missing
    return tuple(name for name in (one.format(cuda=cuda) for one in _LIBRARIES) if not _loads(name))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
