"""Which operators onnxruntime's CUDA provider has a kernel of, and for which types.

A node without one runs on the CPU: what it reads and gives is copied in every run, and no CUDA graph can be captured.
``cuda_kernels.json`` lists, by domain, operator and type parameter, what one release of the provider registers.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import NodeProto

from coda_compile.backends.typed_nodes import Types, typed_nodes
from coda_compile.errors import CompileError

_MADE_OF = {"CastLike": "Cast"}  # operators that onnxruntime replaces by others before it looks for kernels


def check_kernels(model: ir.Model, target: str) -> None:
    """Refuse a graph with a node that would run on the CPU, unless it computes sizes, which lie there anyway.

    Looked at are all nodes of the graph, of its subgraphs and of the function bodies that it calls.

    Args:
        target: for the message.

    Raises:
        CompileError: the first such operator, for which type, its node, and what to do.
    """
    versions = model.opset_imports
    for node, types, of_sizes in typed_nodes(model):
        lacking = None if of_sizes else _lacking(node, versions.get(node.domain, 0), types)
        if lacking is not None:
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise CompileError(
                f"target {target!r} has no kernel of {name}{lacking}, as node {node.name!r} has it: use another "
                "target, or a model without it"
            )


def _lacking(node: NodeProto, version: int, types: Types) -> str | None:
    """For which type no kernel is there, in words, or none for any; ``None`` where there is one."""
    name = _MADE_OF.get(node.op_type, node.op_type)
    taken = _kernels().get(node.domain, {}).get(name)
    if taken is None:
        return ""
    for parameter, value in _parameters(node.domain, name, version, node):
        kind = types.get(value, "undefined")
        if kind != "undefined" and kind not in taken.get(parameter, (kind,)):
            return f" for {kind}"
    return None


def _parameters(domain: str, name: str, version: int, node: NodeProto) -> Iterator[tuple[str, str]]:
    """Type parameters with the values that they are of: all of a standard operator, the first of onnxruntime's own."""
    if not onnx.defs.has(name, version, domain):
        yield next(iter(_kernels()[domain][name])), node.input[0]
        return
    schema = onnx.defs.get_schema(name, version, domain)
    for formals, values in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for i, value in enumerate(values):
            if value:
                yield formals[min(i, len(formals) - 1)].type_str, value


@cache
def _kernels() -> dict[str, dict[str, dict[str, list[str]]]]:
    """By domain, operator and type parameter the types that kernels take."""
    listed = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    found: dict[str, dict[str, dict[str, list[str]]]] = listed["kernels"]
    return found
