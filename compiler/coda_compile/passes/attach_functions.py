"""Give every ``ai.coda`` operator in use its body of standard operators."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from coda_compile.errors import CompileError
from coda_ops import (
    DOMAIN,
    VERSION,
    adapter,
    add_adapter,
    add_gelu,
    add_norm,
    embed_norm,
    int4_linear,
    int8_add_adapter,
    int8_linear,
    pack_tokens,
    put_tokens,
    route,
    self_attention,
    take_tokens,
    unpack_tokens,
)

Body = Callable[..., onnx.FunctionProto]  # takes the model's schedule for Route, and nothing for the others
_SCHEDULE = ("iterations", "epsilon_start", "epsilon_decay", "epsilon_final")


class AttachFunctions(ir.passes.InPlacePass):
    """Attach function bodies, so that the model runs where no native kernel is loaded.

    Args:
        bodies: by operator, those that a runtime is faster with than with the ones of every runtime.
    """

    def __init__(self, bodies: Mapping[str, Body] | None = None) -> None:
        super().__init__()
        self.bodies = dict(bodies or {})

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Attach what is used and not there yet.

        Raises:
            CompileError: two Route nodes with different schedules, which one body cannot serve.
        """
        used = {node.op_type: node for node in model.graph if node.domain == DOMAIN}
        bodies: dict[str, Body] = {
            "Route": route.body,
            "TakeTokens": take_tokens.body,
            "PutTokens": put_tokens.body,
            "PutDifference": put_tokens.difference_body,
            "EmbedNorm": embed_norm.body,
            "Int8EmbedNorm": embed_norm.int8_body,
            "Adapter": adapter.body,
            "AddAdapter": lambda: add_adapter.body("AddAdapter"),
            "AddSwishAdapter": lambda: add_adapter.body("AddSwishAdapter"),
            "Int8AddAdapter": int8_add_adapter.body,
            "Int8RouterAdapter": int8_add_adapter.router_body,
            "AddNorm": add_norm.body,
            "AddGelu": add_gelu.body,
            "SelfAttention": self_attention.body,
            "Int8Linear": int8_linear.body,
            "Int8LinearGelu": int8_linear.gelu_body,
            "Int4Linear": int4_linear.body,
            "PackTokens": pack_tokens.body,
            "UnpackTokens": unpack_tokens.body,
        }
        bodies |= self.bodies
        modified = False
        for name in sorted(used):
            identifier = (DOMAIN, name, "")
            if identifier not in model.functions:
                given = (_schedule(model),) if name == "Route" else ()
                body = ir.serde.deserialize_function(bodies[name](*given))
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


def _schedule(model: ir.Model) -> route.Schedule:
    found = {
        tuple(node.attributes[name].value for name in _SCHEDULE)
        for node in model.graph
        if node.domain == DOMAIN and node.op_type == "Route"
    }
    if len(found) > 1:
        raise CompileError(f"this model has {len(found)} soft top-k schedules: all layers must share one")
    iterations, *epsilons = found.pop()
    # Read back from a file an attribute is float32: the shortest decimal that rounds to it is what was meant.
    return route.Schedule(int(iterations), *(float(str(np.float32(e))) for e in epsilons))
