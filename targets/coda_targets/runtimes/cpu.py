"""Any CPU, through onnxruntime's own kernels: the default target."""

from coda_targets.runtimes.target import Target

TARGET = Target(
    name="cpu",
    summary="any CPU, onnxruntime",
    providers=(("CPUExecutionProvider", {}),),
    opset=20,
    operators="function",
    native=True,
    precisions=("fp32", "int8", "int8-static", "int4"),
    static_shapes=False,
    lowering=(
        "fold_constants",
        "eliminate_identities",
        "merge_low_rank",
        "fuse_attention",
        "prune_heads",
        "trim_to_readout",
        "fuse_projections",
        "lower_static_linears",
        "fuse_adapters",
        "fuse_routers",
        "fuse_gelus",
        "fuse_embeddings",
        "fuse_norms",
        "fuse_put_differences",
        "share_slot_masks",
        "eliminate_common_subexpressions",
        "remove_unused",
        "lift_constants",
        "strip_export_metadata",  # after the passes that write notes of their own
        "attach_functions",
    ),
    install="pip install onnxruntime",
)
