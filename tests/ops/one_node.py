"""A model of one ai.coda node that carries its function body, run on onnxruntime."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from coda_ops import DOMAIN, VERSION, cpu, native
from coda_ops.domain import BODY_OPSET

CPU_KERNELS = native.LIBRARIES["cpu"].path
needs_int8_kernels = pytest.mark.skipif(
    native.library() is None or not cpu.allowed("avx2"), reason="no native kernel multiplies bytes here"
)
_RANKS = {
    "Route": 2,
    "PackTokens": 2,
    "UnpackTokens": 3,
    "EmbedNorm": 3,
    "Int8EmbedNorm": 3,
}  # of outputs that are not of the first input's rank


def run_node(body, inputs, attributes=None, library=None, threads=1):
    """The outputs of one node. ``inputs``: arrays by the names of the body's own inputs, in order.

    With a library of native kernels its kernel runs instead of the body.
    """
    return open_node(body, inputs, attributes, library, threads).run(list(body.output), inputs)


def open_node(body, inputs, attributes=None, library=None, threads=1, constants=()):
    """A session of one node, for inputs of the types and ranks given, or with some of them as constants."""
    names = list(body.output)
    node = helper.make_node(body.name, list(inputs), names, domain=DOMAIN, **(attributes or {}))
    types = {"indices": onnx.TensorProto.INT64, "used": onnx.TensorProto.BOOL}
    half = any(array.dtype == np.float16 for array in inputs.values())
    tokens = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(array.dtype),
                [f"{name}_{axis}" for axis in range(array.ndim)],
            )
            for name, array in inputs.items()
            if name not in constants
        ],
        [
            helper.make_tensor_value_info(
                name,
                types.get(name, tokens),
                [f"{name}_{axis}" for axis in range(_rank(body.name, name, next(iter(inputs.values())).ndim))],
            )
            for name in names
        ],
        [numpy_helper.from_array(inputs[name], name) for name in constants],
    )
    model = helper.make_model(
        graph,
        functions=[body],
        opset_imports=[helper.make_opsetid("", BODY_OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _rank(operator, output, rank):
    return rank - 1 if output == "scores" else _RANKS.get(operator, rank)


def route_attributes(reduction, schedule):
    """Attributes of a Route node."""
    return {
        "numerator": reduction.numerator,
        "denominator": reduction.denominator,
        "iterations": schedule.iterations,
        "epsilon_start": schedule.start,
        "epsilon_decay": schedule.decay,
        "epsilon_final": schedule.final,
    }
