"""NVIDIA GPUs through onnxruntime's CUDA provider."""

from dataclasses import replace

from coda_compile.backends.cpu import BACKEND as CPU
from coda_targets.runtimes.cuda import RUNTIME

BACKEND = replace(
    CPU,
    runtime=RUNTIME,
    precisions=("fp32", "fp16"),
    lacks="placement read back and checked node by node, fp16, and parity measured on a GPU",
)
