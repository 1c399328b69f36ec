"""``ai.coda::Int8AddAdapter``: a bottleneck of two int8 linear layers and the residual sum behind it, fused.

``Int8RouterAdapter`` scores the tokens for the router beside it as well, while they are in the cache. Passes make both,
so they have no torch operators.
"""

import onnx
from onnx.defs import OpSchema

from coda_ops.domain import formal, function, schema
from coda_ops.int8_linear import statements

_INPUTS = [
    formal("residual", "tensor(float)", "[..., width]"),
    formal("x", "tensor(float)", "[..., width]"),
    formal("down", "tensor(uint8)", "[width, bottleneck], with zero point 128."),
    formal("down_scale", "tensor(float)", "[bottleneck]"),
    formal("down_bias", "tensor(float)", "[bottleneck]"),
    formal("up", "tensor(uint8)", "[bottleneck, width], with zero point 128."),
    formal("up_scale", "tensor(float)", "[width]"),
    formal("up_bias", "tensor(float)", "[width]"),
]
_OUTPUTS = [
    formal("y", "tensor(float)", "[..., width]"),
    formal("hidden", "tensor(float)", "[..., bottleneck], what the second linear layer is given."),
]
SCHEMA = schema("Int8AddAdapter", "y = residual + Int8Linear(relu(Int8Linear(x))).", _INPUTS, _OUTPUTS, floats=False)
ROUTER_SCHEMA = schema(
    "Int8RouterAdapter",
    "y = residual + Int8Linear(relu(Int8Linear(x))), scores = x · router.",
    [*_INPUTS, formal("router", "tensor(float)", "[width, 1]")],
    [*_OUTPUTS, formal("scores", "tensor(float)", "[...], one for each token.")],
    floats=False,
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only."""
    return function(f"Int8AddAdapter ({_names(_INPUTS)}) => (y, hidden)", _statements())


def router_body() -> onnx.FunctionProto:
    """That of Int8RouterAdapter."""
    return function(
        f"Int8RouterAdapter ({_names(_INPUTS)}, router) => (y, hidden, scores)",
        f"""{_statements()}
        column = MatMul(x, router)
        scores = Squeeze(column, last)""",
    )


def _names(inputs: list[OpSchema.FormalParameter]) -> str:
    return ", ".join(each.name for each in inputs)


def _statements() -> str:
    constants, down = statements("x", "down", "down_scale", "down_bias", "low")
    _, up = statements("hidden", "up", "up_scale", "up_bias", "high")
    return f"""{constants}{down}
        hidden = Relu(low)
        {up}
        y = Add(residual, high)"""
