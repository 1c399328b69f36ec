"""Where a bundle's time goes inside OpenVINO, and what one of its products in eight bits costs there.

python benchmarks/openvino_profile.py model-openvino-int8 --tokens 512
"""

from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import click
import numpy as np
import onnx
import onnx.inliner
import openvino
from onnx import TensorProto, helper, numpy_helper

from coda_targets import Bundle

KINDS = {
    "float32": "weights and activations in float32",
    "dynamic": "int8 weights, activations rounded as they come, as target openvino has it",
    "static": "int8 weights, activations rounded by one scale for all, as NNCF has it",
}
SEEN = 10  # kinds of operators that are shown


def infer(path: Path, options: dict[str, Any], feed: dict[str, Any], runs: int) -> tuple[float, list[Any]]:
    """Median milliseconds of a run, and what OpenVINO's profiler says of the last."""
    compiled = openvino.Core().compile_model(str(path), "CPU", {**options, "PERF_COUNT": True})
    request = compiled.create_infer_request()
    names = {value.any_name for value in compiled.inputs}
    times = []
    for _ in range(runs):
        began = perf_counter()
        request.infer({name: array for name, array in feed.items() if name in names})
        times.append(1e3 * (perf_counter() - began))
    executed = [info for info in request.get_profiling_info() if "EXECUTED" in str(info.status)]
    return median(times[runs // 3 :]), executed


def product(kind: str, inputs: int, outputs: int) -> onnx.ModelProto:
    """x · W with random weights."""
    random = np.random.default_rng(0)
    weights = random.integers(-127, 128, (inputs, outputs)).astype(np.int8)
    constants = {"w": weights, "s": np.full(outputs, 1e-3, np.float32), "z": np.zeros(outputs, np.int8)}
    nodes, x = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wide"], axis=1)], "x"
    if kind == "float32":
        constants, nodes = {"wide": weights.astype(np.float32) * np.float32(1e-3)}, []
    if kind == "static":
        constants |= {"xs": np.float32(0.03), "xz": np.uint8(128)}
        nodes.append(helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xf"]))
        x = "xf"
    nodes.append(helper.make_node("MatMul", [x, "wide"], ["y"]))
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "rows", size])]
        for name, size in (("x", inputs), ("y", outputs))
    ]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "product", *ends, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", default=512, show_default=True, type=click.IntRange(1))
@click.option("--runs", default=30, show_default=True, type=click.IntRange(3))
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
def main(bundle: Path, tokens: int, runs: int, threads: int) -> None:
    opened = Bundle(bundle)
    _, given = opened.runtime.providers[0]
    options = {**given, "INFERENCE_NUM_THREADS": threads}
    with TemporaryDirectory(prefix="coda-openvino-") as name:
        path = Path(name) / "model.onnx"
        onnx.save(onnx.inliner.inline_local_functions(onnx.load(str(opened.model_path))), str(path))
        took, executed = infer(path, options, opened.manifest.signature.random(1, tokens), runs)
        kinds: dict[tuple[str, str], list[float]] = defaultdict(list)
        for info in executed:
            kinds[info.node_type, info.exec_type].append(1e3 * info.real_time.total_seconds())
        ordered = sorted(kinds.items(), key=lambda item: -sum(item[1]))
        whole = sum(map(sum, kinds.values()))
        click.echo(f"1 x {tokens} tokens, {took:.1f} ms with the profiler on, {threads} threads")
        for (operator, how), times in ordered[:SEEN]:
            click.echo(f"  {sum(times):7.2f} ms {sum(times) / whole:4.0%}  {len(times):4} x {operator}, {how}")
        width, wide = opened.manifest.width, opened.manifest.feed_forward
        for rows in (64, tokens):
            x = np.random.default_rng(1).standard_normal((1, rows, width)).astype(np.float32)
            for kind, what in KINDS.items():
                onnx.save(product(kind, width, wide), str(path))
                took, executed = infer(path, options, {"x": x}, runs)
                how = next(info.exec_type for info in executed if info.node_type.startswith("FullyConnected"))
                rate = rows * width * wide / took / 1e6
                click.echo(f"{rows} x {width} x {wide}: {took:6.2f} ms, {rate:5.0f} G/s, {how}: {what}")


if __name__ == "__main__":
    main()
