"""``ai.coda::Int8AddAdapter``: a bottleneck of two int8 linear layers and the residual sum behind it, fused.

``Int8RouterAdapter`` scores the tokens for the router beside it as well, while they are in the cache. Passes make both,
so they have no torch operators.
"""

import onnx
from onnx.defs import OpSchema

from coda_ops.domain import formal, function, schema
from coda_ops.int8_linear import statements

INPUTS = [
    formal("residual", "tensor(float)", "[..., width]"),
    formal("x", "tensor(float)", "[..., width]"),
    formal("down", "tensor(uint8)", "[width, bottleneck], with zero point 128."),
    formal("down_scale", "tensor(float)", "[bottleneck]"),
    formal("down_bias", "tensor(float)", "[bottleneck]"),
    formal("up", "tensor(uint8)", "[bottleneck, width], with zero point 128."),
    formal("up_scale", "tensor(float)", "[width]"),
    formal("up_bias", "tensor(float)", "[width]"),
]
OUTPUTS = [
    formal("y", "tensor(float)", "[..., width]"),
    formal("hidden", "tensor(float)", "[..., bottleneck], what the second linear layer is given."),
]
ROUTER = formal("router", "tensor(float)", "[width, 1]")
SCORES = formal("scores", "tensor(float)", "[...], one for each token.")
SCHEMA = schema("Int8AddAdapter", "y = residual + Int8Linear(relu(Int8Linear(x))).", INPUTS, OUTPUTS)
ROUTER_SCHEMA = schema(
    "Int8RouterAdapter",
    "y = residual + Int8Linear(relu(Int8Linear(x))), scores = x · router.",
    [*INPUTS, ROUTER],
    [*OUTPUTS, SCORES],
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only."""
    return fused(SCHEMA, "Relu")


def router_body() -> onnx.FunctionProto:
    """That of Int8RouterAdapter."""
    return fused(ROUTER_SCHEMA, "Relu")


def fused(of: OpSchema, activation: str) -> onnx.FunctionProto:
    """The function body of a schema of this kind: two linear layers with an operator between them, and the sum."""
    constants, down = statements("x", "down", "down_scale", "down_bias", "low")
    _, up = statements("hidden", "up", "up_scale", "up_bias", "high")
    inputs, outputs = (", ".join(each.name for each in formals) for formals in (of.inputs, of.outputs))
    scores = """
        column = MatMul(x, router)
        scores = Squeeze(column, last)"""
    return function(
        f"{of.name} ({inputs}) => ({outputs})",
        f"""{constants}{down}
        hidden = {activation}(low)
        {up}
        y = Add(residual, high){scores if len(of.outputs) > len(OUTPUTS) else ""}""",
    )
