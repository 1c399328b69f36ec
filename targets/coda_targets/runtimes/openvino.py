"""Intel CPUs through OpenVINO, as a plugin of onnxruntime."""

from coda_targets.runtimes import Runtime

RUNTIME = Runtime(
    name="openvino",
    providers=(
        (
            "OpenVINOExecutionProvider",
            {
                "PERFORMANCE_HINT": "LATENCY",
                # Left alone OpenVINO takes bfloat16 where the CPU has it, and routers would choose other tokens.
                "INFERENCE_PRECISION_HINT": "f32",
                # Inputs that share a scale where activations are quantised beside int8 weights. It divides the hidden
                # sizes of BERTs, and is faster than OpenVINO's own 32.
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",
            },
        ),
    ),
    install="pip install onnxruntime-ep-openvino",
    plugin="onnxruntime_ep_openvino",
    config_option="load_config",
    thread_option="INFERENCE_NUM_THREADS",
    minimum_onnxruntime="1.23",  # the first that takes execution providers from packages of their own
    # Whatever OpenVINO does not take would run on onnxruntime's own CPU provider without a word.
    session_config={"session.disable_cpu_ep_fallback": "1"},
    profiled_by_onnxruntime=False,
)
