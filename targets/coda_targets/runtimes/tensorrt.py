"""NVIDIA GPUs through onnxruntime's TensorRT provider: data centre cards and Jetson, with TensorRT 10."""

from coda_targets.runtimes import GPU, Runtime

RUNTIME = Runtime(
    name="tensorrt",
    providers=(
        # Without trt_fp16_enable networks are strongly typed: each operator computes in the type that the graph says.
        ("TensorrtExecutionProvider", {}),
        ("CUDAExecutionProvider", {"use_tf32": "0"}),
        ("CPUExecutionProvider", {}),
    ),
    device=GPU,
    install='pip install "onnxruntime-gpu[cuda,cudnn]" and TensorRT 10 from NVIDIA, whose libraries the loader finds',
    minimum_onnxruntime="1.24",  # the first that says where it placed each node
    profile_option="trt_profile_{}_shapes",
    cache_options={
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "{}",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "{}",
    },
)
