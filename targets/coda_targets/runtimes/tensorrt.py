"""NVIDIA GPUs through onnxruntime's TensorRT provider."""

from coda_targets.runtimes import Runtime

RUNTIME = Runtime(
    name="tensorrt",
    providers=(("TensorrtExecutionProvider", {}), ("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})),
    device="gpu",
    install="pip install onnxruntime-gpu tensorrt",
)
