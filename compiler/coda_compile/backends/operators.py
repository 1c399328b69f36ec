"""Which operators a runtime takes: what a backend checks after its passes."""

from collections.abc import Collection, Iterable, Iterator, Mapping

import onnx
import onnx_ir as ir

from coda_compile.errors import CompileError

ONNX = ""
ONNX_ML = "ai.onnx.ml"


def check_operators(
    model: ir.Model, target: str, *, standards: Collection[str] = (ONNX,), own: Collection[str] = ()
) -> None:
    """Refuse a graph with an operator that a runtime does not know.

    Looked at are all nodes, those of subgraphs and of function bodies too.

    Args:
        target: for the message.
        standards: domains of the ONNX standard that the runtime implements; an operator must stand in its domain at the
            version that the graph, or the function body, imports.
        own: other domains that the runtime knows as a whole.

    Raises:
        CompileError: the first such operator, its node, and what to do.
    """
    for nodes, imports, where in _scopes(model):
        for node in nodes:
            known = node.domain in own or node.op_identifier() in model.functions
            version = imports.get(node.domain, 0)
            if known or (node.domain in standards and onnx.defs.has(node.op_type, version, node.domain)):
                continue
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            at = f" of opset {version}" if node.domain in standards else ""
            raise CompileError(
                f"target {target!r} knows no operator {name}{at}, as node {node.name!r} of {where} has it: "
                "use another target, or a model without it"
            )


def _scopes(model: ir.Model) -> Iterator[tuple[Iterable[ir.Node], Mapping[str, int], str]]:
    """Nodes that share imports, and where they are."""
    yield model.graph.all_nodes(), model.opset_imports, "the graph"
    for function in model.functions.values():
        yield function.all_nodes(), function.opset_imports, f"the body of {function.name}"
