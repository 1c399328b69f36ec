"""Opens a model with onnxruntime's CUDA provider and runs it: a program for the stand-in's environment.

python drive.py REQUEST    # REQUEST is JSON, see ``observe``; the answer is JSON on the last line
"""

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

CUDA = "CUDAExecutionProvider"
TYPES = {
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}


def logged() -> int:
    """Bytes that the stand-in has written so far."""
    return Path(os.environ["CUDA_STAND_IN_LOG"]).stat().st_size


def feeds(session: ort.InferenceSession, shape: list[int]) -> dict[str, np.ndarray]:
    """Ones for every input; free axes take the sizes of a shape in the order in which their names appear."""
    sizes: dict[str, int] = {}
    made = {}
    for one in session.get_inputs():
        for axis in one.shape:
            if isinstance(axis, str) and axis not in sizes:
                sizes[axis] = shape[len(sizes)]
        made[one.name] = np.ones([sizes.get(axis, axis) for axis in one.shape], TYPES[one.type])
    return made


def nodes_that_ran(profile: Path) -> list[dict[str, Any]]:
    """Every node once, by onnxruntime's own profile: its operator, its provider and the types that it saw."""
    ran = {}
    for event in json.loads(profile.read_text("utf-8")):
        about = event.get("args", {})
        if event["cat"] == "Node" and "provider" in about:
            types = {side: [next(iter(one)) for one in about[f"{side}_type_shape"]] for side in ("input", "output")}
            ran[about["node_index"]] = {"operator": about["op_name"], "provider": about["provider"], **types}
    return list(ran.values())


def assigned(session: ort.InferenceSession) -> dict[str, int]:
    """How many nodes onnxruntime gave to each provider."""
    counts: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    return counts


def main(request: dict[str, Any]) -> dict[str, Any]:
    with TemporaryDirectory() as name:
        options = ort.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.optimized_model_filepath = str(Path(name) / "optimised.onnx")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(name) / "profile")
        if request["kernels"]:
            options.register_custom_ops_library(request["kernels"])
        start = logged()
        chosen = [(CUDA, request["options"]), "CPUExecutionProvider"]
        session = ort.InferenceSession(request["model"], options, providers=chosen, enable_fallback=0)
        if session.get_providers()[0] != CUDA:
            sys.exit(f"onnxruntime {ort.__version__} does not use its CUDA provider")
        optimised = onnx.load(options.optimized_model_filepath, load_external_data=False)
        marks, nodes, runs = [start, logged()], [], []
        for shape in request["shapes"]:
            binding = session.io_binding()
            for name, array in feeds(session, shape).items():
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
            for one in session.get_outputs():
                binding.bind_output(one.name, "cuda", 0)
            how = ort.RunOptions()
            how.add_run_config_entry("gpu_graph_id", str(len(runs) + 1))
            marks = [logged()]
            for _ in range(3):
                session.run_with_iobinding(binding, how)
                marks.append(logged())
            if not nodes:
                nodes = nodes_that_ran(Path(session.end_profiling()))
            runs.append({"shape": shape, "marks": marks})
        return {
            "onnxruntime": ort.__version__,
            "opened": [start, runs[0]["marks"][0]] if runs else [start, logged()],
            "nodes": nodes,
            "assigned": assigned(session),
            "operators": [node.op_type for node in optimised.graph.node],
            "runs": runs,
        }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
