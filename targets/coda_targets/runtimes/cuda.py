"""NVIDIA GPUs through onnxruntime's CUDA provider."""

from coda_targets.runtimes.cpu import TARGET as CPU
from coda_targets.runtimes.target import Target

TARGET = Target(
    name="cuda",
    summary="NVIDIA GPUs, onnxruntime's CUDA provider",
    providers=(("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})),
    device="gpu",
    opset=20,
    operators="function",
    precisions=("fp32", "fp16"),
    static_shapes=False,
    lowering=CPU.lowering,
    install="pip install onnxruntime-gpu",
    lacks="placement read back and checked node by node, fp16, and parity measured on a GPU",
)
