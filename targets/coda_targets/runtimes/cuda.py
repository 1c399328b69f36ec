"""NVIDIA GPUs through onnxruntime's CUDA provider."""

from coda_targets.runtimes import GPU, Runtime

RUNTIME = Runtime(
    name="cuda",
    providers=(
        # Left alone it multiplies in TF32, whose scores are off by 3e-4, so that routers would choose other tokens.
        ("CUDAExecutionProvider", {"use_tf32": "0"}),
        ("CPUExecutionProvider", {}),
    ),
    device=GPU,
    install='pip install "onnxruntime-gpu[cuda,cudnn]"',
    kernels="cuda",
    minimum_onnxruntime="1.24",  # the first that says where it placed each node
    captures=True,
)
