"""How a worker opens each kind of contender.

An opener takes the number of threads and its own arguments, and gives ``prepare(inputs)``, which gives ``run()``.
"""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from coda_ops import native
from coda_targets import Bundle, get_runtime
from coda_targets.runtimes import DEFAULT_TARGET
from coda_targets.runtimes.session import open_session
from coda_targets.signature import Arrays

Run = Callable[[], object]
Prepare = Callable[[Arrays], Run]


def bundle(
    threads: int, folder: str, target: str | None = None, precision: str | None = None, portable: bool = False
) -> Prepare:
    """A variant of a bundle, as an app runs it; portable: as where no native kernels are installed."""
    if portable:
        os.environ[native.SWITCH] = "portable"  # this process has but one contender
    opened = Bundle(folder, target=target, precision=precision, threads=threads)
    session = opened.session

    def prepare(inputs: Arrays) -> Run:
        feed = opened.prepare(inputs)
        return lambda: session.run(None, feed)

    return prepare


def onnx(threads: int, path: str) -> Prepare:
    """An ONNX file on onnxruntime's provider of every machine, with its default optimisations."""
    session = open_session(Path(path), get_runtime(DEFAULT_TARGET), threads=threads)
    names = [tensor.name for tensor in session.get_inputs()]

    def prepare(inputs: Arrays) -> Run:
        feed = {name: np.ascontiguousarray(inputs[name]) for name in names}
        return lambda: session.run(None, feed)

    return prepare


def torch_model(
    threads: int, checkpoint: str, compiled: bool, backbone: str | None = None, architecture: str | None = None
) -> Prepare:
    """What could be compiled, in torch: eager, or through ``torch.compile``.

    Args:
        architecture: the module that registers the model's type, where it is not one of ours.
    """
    import torch

    from coda_compile.sources import read_source

    torch.set_num_threads(threads)
    if architecture is not None:
        import_module(architecture)
    model = read_source(Path(checkpoint), backbone=backbone).model
    call: Callable[..., Any] = torch.compile(model) if compiled else model

    def prepare(inputs: Arrays) -> Run:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in model.signature.names}

        def run() -> object:
            with torch.inference_mode():
                return call(**tensors)

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
