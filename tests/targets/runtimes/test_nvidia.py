"""What has to be here before a session is made on an NVIDIA GPU, and what onnxruntime's failures there mean."""

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from coda_ops import distributions, native
from coda_targets import TargetError, get_runtime
from coda_targets.errors import InputError
from coda_targets.runtimes import nvidia
from coda_targets.runtimes.session import open_session, place, require_runtime, run_session

CUDA = get_runtime("cuda")
BOTH = ["CUDAExecutionProvider", "CPUExecutionProvider"]
INSTALL = 'pip install "onnxruntime-gpu[cuda,cudnn]"'


class Driver:
    """Answers as libcuda does, by reference."""

    def __init__(self, devices: int = 1, version: int = 13000, started: int = 0, name: bytes = b"NVIDIA H100") -> None:
        self.devices, self.version, self.started, self.name = devices, version, started, name

    def cuInit(self, flags: int) -> int:  # noqa: N802  the driver's names
        return self.started

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.devices
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0 if index < self.devices else 101

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:  # noqa: N802
        name.value = self.name
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 6}[attribute]
        return 0


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """All is here: onnxruntime's CUDA build, CUDA, cuDNN, a driver and a GPU; tests take one away."""
    _machine(monkeypatch, Driver())
    monkeypatch.setattr(ort, "get_available_providers", lambda: BOTH)
    monkeypatch.setattr(ort, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(ort, "__version__", "1.31.1")
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load anything"), raising=False)
    nvidia._missing_libraries.cache_clear()
    nvidia.driver.cache_clear()
    yield monkeypatch
    nvidia._missing_libraries.cache_clear()
    nvidia.driver.cache_clear()


def _machine(monkeypatch: pytest.MonkeyPatch, driver: Driver | None, *absent: str) -> None:
    def load(name: str) -> Any:
        if name in absent or (name == "libcuda.so.1" and driver is None):
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    nvidia.driver.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", load)


def refused(**changes: Any) -> str:
    """The one sentence, behind the target's name."""
    with pytest.raises(TargetError) as caught:
        require_runtime(replace(CUDA, **changes))
    return str(caught.value).removeprefix("target 'cuda' cannot run here: ")


def test_where_all_is_here_nothing_is_said(capsys: pytest.CaptureFixture[str]):
    require_runtime(CUDA)
    assert capsys.readouterr() == ("", "")
    assert place(CUDA) == "CUDAExecutionProvider NVIDIA H100"
    assert nvidia.device_name(7) == ""


def test_no_driver(gpu: pytest.MonkeyPatch):
    _machine(gpu, None)
    assert refused().startswith("there is no NVIDIA driver (libcuda.so.1 cannot be loaded): install one, give the con")
    assert place(CUDA) == "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("driver", "sentence"),
    [
        (Driver(devices=0), "the NVIDIA driver finds no GPU: see nvidia-smi and CUDA_VISIBLE_DEVICES, or use another"),
        (Driver(started=100), "the NVIDIA driver finds no GPU: see nvidia-smi"),
        (
            Driver(started=3),
            "this process was forked from one that uses CUDA: open the bundle after the fork, or start",
        ),
        (Driver(started=803), "the NVIDIA driver does not start (cuInit gives 803): see nvidia-smi"),
        (
            Driver(version=12080),
            "onnxruntime 1.31.1 is built for CUDA 13 and the NVIDIA driver goes up to 12.8: update the driver, or "
            "install an onnxruntime-gpu that is built for CUDA 12",
        ),
    ],
)
def test_a_driver_that_does_not_serve(gpu: pytest.MonkeyPatch, driver: Driver, sentence: str):
    _machine(gpu, driver)
    assert refused().startswith(sentence)


def test_a_newer_driver_serves(gpu: pytest.MonkeyPatch):
    _machine(gpu, Driver(version=14010))
    require_runtime(CUDA)


def test_a_device_that_is_not_there(gpu: pytest.MonkeyPatch):
    assert refused(index=1) == "there is no GPU 1: this process sees GPU 0 alone, choose device there"
    _machine(gpu, Driver(devices=4))
    require_runtime(replace(CUDA, index=3))
    assert refused(index=4) == "there is no GPU 4: this process sees GPUs 0 to 3, choose device there"


def test_libraries_that_are_missing_are_named(gpu: pytest.MonkeyPatch):
    gpu.setattr("sys.platform", "linux")
    _machine(gpu, Driver(), "libcublas.so.13", "libcudnn.so.9")
    assert refused() == f"libcublas.so.13, libcudnn.so.9 cannot be loaded: {INSTALL}"


def test_a_build_that_does_not_say_its_cuda_is_taken_at_its_word(gpu: pytest.MonkeyPatch):
    gpu.setattr(ort, "cuda_version", "")
    _machine(gpu, Driver(version=12080), "libcudnn.so.9")
    require_runtime(CUDA)


@pytest.mark.parametrize(
    ("installed", "sentence"),
    [
        ({}, f"CUDAExecutionProvider is not installed: {INSTALL}"),
        (
            {"onnxruntime": "1.32.0"},
            f"CUDAExecutionProvider is not in onnxruntime 1.32.0: pip uninstall -y onnxruntime, then {INSTALL}",
        ),
        (
            {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"},
            "onnxruntime 1.32.0 overwrote files of onnxruntime-gpu 1.31.1, as both install the same ones: "
            f"pip uninstall -y onnxruntime onnxruntime-gpu, then {INSTALL}",
        ),
    ],
)
def test_a_build_without_cuda(gpu: pytest.MonkeyPatch, installed: dict[str, str], sentence: str):
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    gpu.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    gpu.setattr(distributions, "version", version)
    assert refused() == sentence


def test_an_onnxruntime_that_is_too_old(gpu: pytest.MonkeyPatch):
    gpu.setattr(ort, "__version__", "1.23.2")
    assert refused().startswith("the model needs onnxruntime 1.24 or newer and 1.23.2 is installed: ")


class Node:
    def __init__(self, op_type: str, name: str = "", domain: str = "") -> None:
        self.op_type, self.name, self.domain = op_type, name, domain


class Part:
    def __init__(self, ep_name: str, *nodes: Node) -> None:
        self.ep_name, self._nodes = ep_name, nodes

    def get_nodes(self) -> tuple[Node, ...]:
        return self._nodes


class Session:
    """One of onnxruntime, as far as opening and running look at it."""

    parts: tuple[Part, ...] = (Part(BOTH[0], Node("MatMul")), Part(BOTH[1], Node("Concat"), Node("Div")))
    made: tuple[str, ...] = tuple(BOTH)
    error = ""
    given: Any = None

    def __init__(self, model: str, options: ort.SessionOptions, providers: Any, enable_fallback: int) -> None:
        assert enable_fallback == 0
        assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
        if self.error:
            raise RuntimeError(self.error)
        type(self).given = providers

    def get_providers(self) -> list[str]:
        return list(self.made)

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {name: {"device_id": "2"} for name in self.made}

    def get_provider_graph_assignment_info(self) -> tuple[Part, ...]:
        return self.parts

    def run(self, *_: Any) -> Any:
        raise RuntimeError(self.error)


def opened(gpu: pytest.MonkeyPatch, runtime: Any = CUDA, **says: Any) -> Any:
    gpu.setattr(ort, "InferenceSession", type("Fake", (Session,), says))
    return open_session(Path("model.onnx"), replace(runtime, kernels=""))


def test_options_say_which_device_and_how_much_of_it(gpu: pytest.MonkeyPatch):
    _machine(gpu, Driver(devices=2))
    assert opened(gpu).given == [(BOTH[0], {"use_tf32": "0"}), (BOTH[1], {})]
    chosen = opened(gpu, CUDA.on_device(1, 4096, cuda_graph=True)).given[0][1]
    assert chosen == {
        "use_tf32": "0",
        "device_id": "1",
        "gpu_mem_limit": "4096",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "1",
    }


@pytest.mark.parametrize(
    ("node", "named"),
    [
        (Node("TopK", "choose"), "node 'choose' of operator TopK"),
        (Node("Route", "", "ai.coda"), "a node of operator ai.coda::Route"),
        (Node("Add", "sum", "com.microsoft"), "node 'sum' of operator com.microsoft::Add"),
    ],
)
def test_a_node_on_the_cpu_is_named(gpu: pytest.MonkeyPatch, node: Node, named: str):
    with pytest.raises(TargetError) as caught:
        opened(gpu, parts=(*Session.parts, Part(BOTH[1], node)))
    assert f"onnxruntime 1.31.1 gives {named} to CPUExecutionProvider" in str(caught.value)


def test_a_session_that_fell_to_the_cpu_says_why(gpu: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "capi").mkdir()
    library = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    library.touch()
    gpu.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(TargetError, match=r"onnxruntime falls back to the CPU: pip install"):
        opened(gpu, made=("CPUExecutionProvider",))
    _machine(gpu, Driver(), str(library))
    with pytest.raises(TargetError, match=r"cannot run here: .*providers_cuda.so: cannot open shared object file: pip"):
        opened(gpu, made=("CPUExecutionProvider",))


FAILURES = {
    "arena": (
        "bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 1769472",
        "GPU 0 (NVIDIA H100) has too little memory for",
    ),
    "limit": (
        "Available memory of 12 is smaller than requested bytes of 4096",
        "GPU 0 (NVIDIA H100) has too little memory for",
    ),
    "cublas": ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", "GPU 0 (NVIDIA H100) has too little memory for"),
    "graph": (
        "This session cannot use the graph capture feature as requested by the user",
        "model.onnx cannot be captured as a CUDA graph, as the CPU takes part in a run: leave cuda_graph out",
    ),
}


@pytest.mark.parametrize(("said", "sentence"), FAILURES.values(), ids=list(FAILURES))
def test_what_makes_loading_fail(gpu: pytest.MonkeyPatch, said: str, sentence: str):
    with pytest.raises(TargetError) as caught:
        opened(gpu, error=said)
    assert str(caught.value).startswith(sentence)
    assert len(str(caught.value).splitlines()) == 1


def running(gpu: pytest.MonkeyPatch, error: str) -> str:
    session = opened(gpu)
    session.error = error
    with pytest.raises((InputError, TargetError)) as caught:
        run_session(session, ["logits"], {})
    return str(caught.value)


def test_what_makes_a_run_fail(gpu: pytest.MonkeyPatch, tmp_path: Path):
    _machine(gpu, Driver(devices=3))
    assert running(gpu, "CUDA failure 2: out of memory ; GPU=0") == (
        "GPU 2 (NVIDIA H100) has too little memory for this input: run smaller batches or shorter inputs, allow more "
        "where memory_limit is set, or choose another device"
    )
    code = "running {} node. Name:'' CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available"
    theirs = "onnxruntime 1.31.1 holds no code for GPU 2 (NVIDIA H100) of compute capability 8.6: choose another device"
    assert running(gpu, code.format("Gather")).startswith(theirs)
    gpu.setattr(native, "library", lambda name: tmp_path)
    gpu.setattr(native.Library, "operators", ("Route",))
    assert running(gpu, code.format("Gather")).startswith(theirs)
    assert running(gpu, code.format("Route")) == (
        f"the native kernels in {native.LIBRARIES['cuda'].path} hold no code for GPU 2 (NVIDIA H100) of compute "
        "capability 8.6: build them again with `coda-compile kernels build --target cuda`, or do without: "
        "CODA_KERNELS=portable"
    )
    said = "indices out of range"
    assert running(gpu, said) == f"onnxruntime cannot run the model on this input: {said}"
