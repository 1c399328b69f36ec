"""Any CPU, through onnxruntime's own kernels: the default target."""

from coda_targets.runtimes import Runtime

RUNTIME = Runtime(
    name="cpu",
    providers=(("CPUExecutionProvider", {}),),
    install="pip install onnxruntime",
    kernels="cpu",
)
