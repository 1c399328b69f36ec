"""RTX cards, Ampere and later, through TensorRT-RTX, as a plugin of onnxruntime."""

from coda_targets.runtimes import GPU, Runtime

RUNTIME = Runtime(
    name="tensorrt-rtx",
    providers=(("NvTensorRTRTXExecutionProvider", {}),),
    device=GPU,
    install='pip install "coda-compile[tensorrt-rtx]"',
    plugin="onnxruntime_ep_nv_tensorrt_rtx",
    minimum_onnxruntime="1.24",
    # Whatever TensorRT-RTX does not take would run on onnxruntime's own CPU provider without a word.
    session_config={"session.disable_cpu_ep_fallback": "1"},
    profiled_by_onnxruntime=False,
    profile_option="nv_profile_{}_shapes",
    cache_options={"nv_runtime_cache_path": "{}"},
)
