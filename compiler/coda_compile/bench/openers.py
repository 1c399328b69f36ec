"""How a worker opens each kind of contender.

An opener takes the number of threads and its own arguments, and gives ``prepare(inputs)``, which gives ``run()``. A run
begins with inputs in the memory of the CPU, and ends when the outputs lie there: also on a GPU, whoever runs.
"""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from coda_ops import native
from coda_ops.errors import CodaError
from coda_targets import Bundle, get_runtime
from coda_targets.runtimes import DEFAULT_TARGET, nvidia
from coda_targets.runtimes.cuda_graphs import CudaGraph, uncaptured
from coda_targets.runtimes.session import open_session
from coda_targets.signature import Arrays

if TYPE_CHECKING:
    from coda_models import CodaModel

Run = Callable[[], object]
Prepare = Callable[[Arrays], Run]
_TORCH_DEVICE = "cuda"


def bundle(
    threads: int,
    folder: str,
    target: str | None = None,
    precision: str | None = None,
    portable: bool = False,
    cuda_graph: bool = False,
) -> Prepare:
    """A variant of a bundle, as an app runs it.

    Args:
        portable: as where no native kernels are installed.
        cuda_graph: replay a CUDA graph of each input.
    """
    if portable:
        os.environ[native.SWITCH] = "portable"  # this process has but one contender
    opened = Bundle(folder, target=target, precision=precision, threads=threads, cuda_graph=cuda_graph)
    return _prepared(opened.session, opened.prepare, cuda_graph)


def onnx(threads: int, path: str) -> Prepare:
    """An ONNX file on onnxruntime's provider of every machine, with its default optimisations."""
    return _of_session(open_session(Path(path), get_runtime(DEFAULT_TARGET), threads=threads))


def onnx_on_gpu(threads: int, path: str, cuda_graph: bool = False) -> Prepare:
    """An ONNX file on onnxruntime's CUDA provider, with its default options.

    Args:
        threads: CUDA needs none.
        cuda_graph: replay a CUDA graph of each input.

    Raises:
        CodaError: onnxruntime would run it on the CPU.
    """
    if nvidia.PROVIDER not in ort.get_available_providers():
        raise CodaError(f"onnxruntime {ort.__version__} has no {nvidia.PROVIDER}: pip install onnxruntime-gpu")
    ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    chosen = [(nvidia.PROVIDER, {"enable_cuda_graph": str(int(cuda_graph))})]
    session = ort.InferenceSession(path, options, providers=chosen)
    if session.get_providers()[0] != nvidia.PROVIDER:
        raise CodaError(f"onnxruntime {ort.__version__} cannot use its {nvidia.PROVIDER} here")
    return _of_session(session, cuda_graph=cuda_graph)


def torch_model(
    threads: int, checkpoint: str, compiled: bool, backbone: str | None = None, architecture: str | None = None
) -> Prepare:
    """What could be compiled, in torch: eager, or through ``torch.compile``.

    Args:
        architecture: the module that registers the model's type, where it is not one of ours.
    """
    import torch

    torch.set_num_threads(threads)
    model = _read(checkpoint, backbone, architecture)
    call: Callable[..., Any] = torch.compile(model) if compiled else model

    def prepare(inputs: Arrays) -> Run:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in model.signature.names}

        def run() -> object:
            with torch.inference_mode():
                return call(**tensors)

        return run

    return prepare


def torch_on_gpu(threads: int, checkpoint: str, compiled: bool, architecture: str | None = None) -> Prepare:
    """What could be compiled, in torch and float16 on a GPU: eager, or through ``torch.compile`` at its best.

    ``max-autotune`` captures CUDA graphs. Each shape has a graph of its own, and a model that has to be broken into
    several is an error: both would be slower without a word.

    Args:
        threads: of the CPU.
        architecture: see ``torch_model``.

    Raises:
        CodaError: this torch sees no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise CodaError(f"torch {torch.__version__} sees no GPU: install its CUDA build")
    torch.set_num_threads(threads)
    model = _read(checkpoint, None, architecture).half().to(_TORCH_DEVICE)
    call: Callable[..., Any] = model
    if compiled:
        call = torch.compile(model, mode="max-autotune", dynamic=False, fullgraph=True)

    def prepare(inputs: Arrays) -> Run:
        given = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in model.signature.names}
        tensors = {name: one.half() if one.is_floating_point() else one for name, one in given.items()}

        def run() -> object:
            with torch.inference_mode():
                outputs = call(**{name: one.to(_TORCH_DEVICE) for name, one in tensors.items()})
                found = [one.cpu() for one in outputs.values() if isinstance(one, torch.Tensor)]
            torch.cuda.synchronize()
            return found

        return run

    return prepare


def openvino(threads: int, path: str) -> Prepare:
    """A model in OpenVINO, in float32 where its weights are: by default it would take bfloat16 where the CPU has it."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
    names = [port.get_any_name() for port in request.model_inputs]

    def prepare(inputs: Arrays) -> Run:
        feed = {name: np.ascontiguousarray(inputs[name]) for name in names}
        return lambda: request.infer(feed)

    return prepare


def _read(checkpoint: str, backbone: str | None, architecture: str | None) -> "CodaModel":
    from coda_compile.sources import read_source

    if architecture is not None:
        import_module(architecture)
    return read_source(Path(checkpoint), backbone=backbone).model


def _of_session(session: ort.InferenceSession, *, cuda_graph: bool = False) -> Prepare:
    """A session that takes arrays as they are."""
    names = [tensor.name for tensor in session.get_inputs()]
    return _prepared(session, lambda inputs: {name: np.ascontiguousarray(inputs[name]) for name in names}, cuda_graph)


def _prepared(session: ort.InferenceSession, feed_of: Callable[[Arrays], Arrays], cuda_graph: bool) -> Prepare:
    """What runs a session on inputs: plainly, or as one CUDA graph for each of them."""
    graphs = 0

    def prepare(inputs: Arrays) -> Run:
        nonlocal graphs
        graphs += 1
        feed = feed_of(inputs)
        return _captured(session, feed, graphs) if cuda_graph else lambda: session.run(None, feed)

    return prepare


def _captured(session: ort.InferenceSession, feed: Arrays, number: int) -> Run:
    """Replay a CUDA graph, the session's of this number; a worker has one thread, in which onnxruntime keeps it."""
    names = [output.name for output in session.get_outputs()]
    graph = CudaGraph.of(session, names, feed, uncaptured(session, names, feed), number)
    return lambda: graph.run(session, feed)
