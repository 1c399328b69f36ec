"""NVIDIA GPUs through onnxruntime's CUDA provider."""

from coda_targets.runtimes import Runtime

RUNTIME = Runtime(
    name="cuda",
    providers=(("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})),
    device="gpu",
    install="pip install onnxruntime-gpu",
)
