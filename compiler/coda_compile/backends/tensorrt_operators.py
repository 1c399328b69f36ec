"""What TensorRT's parser of ONNX takes, and its builder: each rule refuses at compile time what a device would refuse.

``tensorrt_operators.json`` lists the operators with their types as the parser's own documentation does.
"""

import json
from collections.abc import Collection, Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path

import onnx_ir as ir
from onnx import NodeProto

from coda_compile.backends.typed_nodes import Types, typed_nodes
from coda_compile.errors import CompileError, OptionError
from coda_ops import DOMAIN
from coda_ops.capacity import slot_count
from coda_targets.profile import Profile
from coda_targets.routing import LAYER_TAG

NEWEST_OPSET = 20  # of the parser of TensorRT 10.0, whose documentation says 9 to 20
MOST_SLOTS = 3840  # K of TopK: github.com/NVIDIA/TensorRT/issues/4244; TensorRT-RTX 1.7 refuses more as it builds
_REST = "use another target, or a model without it"


def check_parser(model: ir.Model, target: str) -> None:
    """Refuse a graph that the parser does not take, or whose numbers it would change without a word.

    Args:
        target: for the message.

    Raises:
        CompileError: the first such operator, its node, and what to do.
    """
    opset = model.opset_imports[""]
    if opset > NEWEST_OPSET:
        raise CompileError(f"target {target!r} reads opset {NEWEST_OPSET} at most, and this model has opset {opset}")
    constants = {name for name, value in model.graph.initializers.items() if value.const_value is not None}
    for node, types, _ in typed_nodes(model):
        if node.op_type == "Constant":
            constants.update(node.output)
        if why := _refused(node, types, constants):
            raise CompileError(f"target {target!r} {why}, as node {node.name!r} of the graph has it: {_REST}")


def check_slots(model: ir.Model, target: str, profile: Profile) -> None:
    """Refuse more slots at the profile's longest input than the builder's TopK takes.

    Raises:
        OptionError: which layer, and what to do.
    """
    longest = profile.most[1]
    for node in model.graph:
        if (node.domain, node.op_type) != (DOMAIN, "Route"):
            continue
        reduction = Fraction(node.attributes["numerator"].as_int(), node.attributes["denominator"].as_int())
        slots = slot_count(longest, reduction)
        if slots > MOST_SLOTS:
            raise OptionError(
                "target {name!r} routes {most} tokens at most, and layer {layer} routes {slots} of {longest} at r = {r}"
                ": give a {profile} of shorter inputs, or a larger {reduction}",
                name=target,
                most=MOST_SLOTS,
                layer=node.metadata_props[LAYER_TAG],
                slots=slots,
                longest=longest,
                r=str(reduction),
            )


def _refused(node: NodeProto, types: Types, constants: Collection[str]) -> str:
    """Why the parser refuses a node, in words; empty where it does not."""
    name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    taken = _operators().get(node.op_type) if not node.domain else None
    if taken is None:
        return f"knows no operator {name}"
    kinds = [types.get(value, "undefined") for value in (*node.input, *node.output) if value]
    if "double" in kinds:
        return f"computes {name} of double in float, so that its results would be others"
    given = types.get(node.input[0], "undefined") if node.input else "undefined"
    if given not in ("undefined", *taken):
        return f"takes no {given} for {name}"
    return _restricted(node, constants)


def _restricted(node: NodeProto, constants: Collection[str]) -> str:
    """What an operator that is taken may not be."""
    attributes = {one.name: one for one in node.attribute}
    if node.op_type == "LayerNormalization" and any(node.output[1:]):
        return "gives no mean and no deviation of LayerNormalization"
    if node.op_type == "ScatterND" and attributes.get("reduction") and attributes["reduction"].s != b"none":
        return "has no reduction in ScatterND"
    if node.op_type == "TopK" and attributes.get("sorted") and not attributes["sorted"].i:
        return "has no unsorted TopK"
    axes = node.input[1] if node.op_type in _AXES and len(node.input) > 1 else ""
    return f"takes axes of {node.op_type} as a constant alone" if axes and axes not in constants else ""


_AXES = {"Squeeze", "Unsqueeze", "ReduceSum", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceLogSumExp", "ReduceL2"}


@cache
def _operators() -> Mapping[str, list[str]]:
    """Types by operator of the standard."""
    listed: dict[str, dict[str, list[str]]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    return listed["operators"]
