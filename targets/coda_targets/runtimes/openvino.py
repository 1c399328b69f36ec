"""Intel CPUs through OpenVINO, as a plugin of onnxruntime."""

from coda_targets.runtimes.target import Target

TARGET = Target(
    name="openvino",
    summary="Intel CPUs, OpenVINO as a plugin of onnxruntime",
    providers=(
        (
            "OpenVINOExecutionProvider",
            {
                "PERFORMANCE_HINT": "LATENCY",
                # Left alone OpenVINO takes bfloat16 where the CPU has it, and routers would choose other tokens.
                "INFERENCE_PRECISION_HINT": "f32",
                # Inputs that share a step where activations are rounded beside int8 weights. It divides the widths of
                # BERTs, and is faster than OpenVINO's own 32.
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",
            },
        ),
    ),
    plugin="onnxruntime_ep_openvino",
    opset=20,
    operators="function",
    precisions=("fp32", "int8", "int8-static"),
    static_shapes=False,
    # Attention and norms stay in standard operators: OpenVINO fuses those itself, and onnxruntime's own it takes apart.
    lowering=(
        "fold_constants",
        "eliminate_identities",
        "merge_low_rank",
        "dequantize_weights",
        "lower_static_linears",
        "insert_scale_barriers",
        "share_slot_masks",
        "eliminate_common_subexpressions",
        "remove_unused",
        "lift_constants",
        "strip_export_metadata",  # after the passes that write notes of their own
        "attach_openvino_functions",
    ),
    wide_floats=False,
    # Whatever OpenVINO does not take would run on onnxruntime's own CPU provider without a word.
    session_config={"session.disable_cpu_ep_fallback": "1"},
    install="pip install onnxruntime-ep-openvino",
)
