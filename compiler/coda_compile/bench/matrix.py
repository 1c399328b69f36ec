"""The machine's matrix multiplication rate, measured in the same run as everything else."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from coda_compile.bench.turns import Contender, in_turns
from coda_targets.bundle import Arrays

_TOKENS = 512


def matrix_rates(folder: Path, width: int, feed_forward: int, *, rounds: int, threads: int) -> dict[str, float]:
    """Multiply-adds a second of [512, width] x [width, feed_forward] in onnxruntime, in fp32 and int8.

    Args:
        folder: for the two small models.
    """
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((width, feed_forward)).astype(np.float32)
    constants: dict[str, NDArray[Any]] = {"fp32": weights, "int8": (weights * 30).astype(np.int8)}
    operators = {
        "fp32": ("MatMul", TensorProto.FLOAT, TensorProto.FLOAT),
        "int8": ("MatMulInteger", TensorProto.UINT8, TensorProto.INT32),
    }
    contenders = []
    for precision, (operator, element, result) in operators.items():
        graph = helper.make_graph(
            [helper.make_node(operator, [precision, "w"], ["y"])],
            "product",
            [helper.make_tensor_value_info(precision, element, [_TOKENS, width])],
            [helper.make_tensor_value_info("y", result, [_TOKENS, feed_forward])],
            [numpy_helper.from_array(constants[precision], "w")],
        )
        path = folder / f"product-{precision}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        contenders.append(Contender(precision, "onnx", {"path": str(path)}))
    left = generator.standard_normal((_TOKENS, width)).astype(np.float32)
    inputs: Arrays = {"fp32": left, "int8": np.clip(left * 30 + 128, 0, 255).astype(np.uint8)}
    timings = in_turns(contenders, [inputs], rounds=rounds, threads=threads)
    work = _TOKENS * width * feed_forward
    return {precision: work / float(np.median(timing.every_run())) for precision, timing in timings.items()}
