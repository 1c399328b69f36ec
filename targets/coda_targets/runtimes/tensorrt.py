"""NVIDIA GPUs through onnxruntime's TensorRT provider."""

from coda_targets.runtimes.target import Target

TARGET = Target(
    name="tensorrt",
    summary="NVIDIA GPUs, onnxruntime's TensorRT provider",
    providers=(("TensorrtExecutionProvider", {}), ("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})),
    device="gpu",
    opset=20,
    operators="inlined",
    precisions=("fp32", "fp16"),
    static_shapes=True,
    lowering=(
        "fold_constants",
        "eliminate_identities",
        "eliminate_common_subexpressions",
        "remove_unused",
        "lift_constants",
        "strip_export_metadata",  # after the passes that write notes of their own
    ),
    install="pip install onnxruntime-gpu tensorrt",
    lacks="static sequence buckets with a constant k of at most 3840, function bodies inlined, and an engine cache",
)
