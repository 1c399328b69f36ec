"""Attach the function body of every ``ai.coda`` operator in use."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from coda_compile.errors import CompileError
from coda_ops import DOMAIN, VERSION
from coda_ops.catalogue import find_operator


class AttachFunctions(ir.passes.InPlacePass):
    """Attach function bodies, so that the model runs where no native kernel is loaded.

    Args:
        runtime: whose fastest bodies to take, where an operator has several; see ``Operator.bodies``.
    """

    def __init__(self, *, runtime: str = "") -> None:
        super().__init__()
        self.runtime = runtime

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Attach what is used and not there yet.

        Raises:
            CompileError: an operator that is unknown, or one whose body cannot serve all of its nodes.
        """
        used = sorted({node.op_type for node in model.graph if node.domain == DOMAIN})
        modified = False
        for name in used:
            identifier = (DOMAIN, name, "")
            if identifier not in model.functions:
                operator = find_operator(DOMAIN, name)
                if operator is None:
                    raise CompileError(f"operator {DOMAIN}::{name} is unknown: export the model again")
                attributes = _shared(model, name, operator.body_attributes)
                body = ir.serde.deserialize_function(operator.function_body(attributes, self.runtime))
                # onnx's checker wants a function and its model to import one version of the default domain; what the
                # bodies use means the same in all of them from the one they are written in.
                body.opset_imports[""] = model.opset_imports[""]
                model.functions[identifier] = body
                for domain, version in body.opset_imports.items():
                    model.graph.opset_imports.setdefault(domain, version)
                modified = True
        if used:
            model.graph.opset_imports[DOMAIN] = VERSION
        return ir.passes.PassResult(model, modified)


def _shared(model: ir.Model, operator: str, names: Sequence[str]) -> dict[str, Any]:
    """The values that attributes have in all nodes of an operator."""
    nodes = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, operator)]
    found = {tuple(_exact(node.attributes[name].value) for name in names) for node in nodes}
    if len(found) > 1:
        what = ", ".join(names)
        raise CompileError(
            f"the {operator} nodes of this model have {len(found)} settings of {what}: all must share one"
        )
    return dict(zip(names, found.pop(), strict=True))


def _exact(value: Any) -> Any:
    """Read back from a file an attribute is float32: the shortest decimal that rounds to it is what was meant."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
