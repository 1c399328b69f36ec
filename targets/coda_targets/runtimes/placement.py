"""Which execution provider onnxruntime gave each node to: nothing runs on the CPU but arithmetic of shapes."""

import onnxruntime as ort

from coda_targets.errors import TargetError
from coda_targets.runtimes import Runtime

RECORDED = "session.record_ep_graph_assignment_info"  # the entry of a session's configuration that has it noted
_CPU = "CPUExecutionProvider"
# Operators of the ONNX standard that onnxruntime leaves on the CPU where they compute the sizes of tensors, which it
# needs there. Each has a kernel on a GPU for what is no size.
_OF_SHAPES = {
    "Add",
    "Concat",
    "Div",
    "Gather",
    "Mul",
    "Range",
    "Reshape",
    "Shape",
    "Slice",
    "Squeeze",
    "Sub",
    "Unsqueeze",
}


def check_placement(session: ort.InferenceSession, runtime: Runtime) -> None:
    """Refuse a session that runs on the CPU what its runtime should.

    Args:
        session: made with ``RECORDED`` set to 1.

    Raises:
        TargetError: the first node that lies elsewhere, with its operator.
    """
    own = {name for name, _ in runtime.providers if name != _CPU}
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes() if part.ep_name not in own else ():
            if node.domain or node.op_type not in _OF_SHAPES:
                operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
                named = f"node {node.name!r} of operator {operator}" if node.name else f"a node of operator {operator}"
                raise TargetError(
                    f"target {runtime.name!r} cannot run the model: onnxruntime {ort.__version__} gives {named} to "
                    f"{part.ep_name}, where its {runtime.preferred} has no kernel for it: compile the model again, or "
                    "for another target"
                )
