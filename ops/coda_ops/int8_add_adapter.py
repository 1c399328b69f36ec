"""``ai.coda::Int8AddAdapter``: a bottleneck of two int8 products and the residual sum behind it, in one.

``Int8RouterAdapter`` scores the tokens for the router beside it as well, while they are in the cache. The compiler
alone puts them into models, so their torch forms are plain functions.
"""

import onnx
import torch.nn.functional as F
from onnx.defs import OpSchema
from torch import Tensor

from coda_ops.domain import formal, function, schema
from coda_ops.int8_linear import Int8Weights, int8_linear, statements


def int8_add_adapter(
    residual: Tensor, x: Tensor, down: Int8Weights, down_bias: Tensor, up: Int8Weights, up_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """``residual + int8_linear(relu(int8_linear(x)))``, each of the two rounding its tokens by steps of its own.

    Args:
        residual, x: [..., width] float32.
        down: [width, bottleneck]; down_bias: [bottleneck].
        up: [bottleneck, width]; up_bias: [width].

    Returns:
        The sum, [..., width], and what the second product multiplies, [..., bottleneck].
    """
    hidden = F.relu(int8_linear(x, *down, down_bias))
    return residual + int8_linear(hidden, *up, up_bias), hidden


def int8_router_adapter(
    residual: Tensor,
    x: Tensor,
    down: Int8Weights,
    down_bias: Tensor,
    up: Int8Weights,
    up_bias: Tensor,
    router: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """``int8_add_adapter``, and the score ``x · router`` of every token in float32.

    Args:
        router: [width, 1] float32.

    Returns:
        The sum, what the second product multiplies, and scores, [...].
    """
    return *int8_add_adapter(residual, x, down, down_bias, up, up_bias), (x @ router).squeeze(-1)


_INPUTS = [
    formal("residual", "tensor(float)", "[..., width]"),
    formal("x", "tensor(float)", "[..., width]"),
    formal("down", "tensor(uint8)", "[width, bottleneck], 128 stands for 0."),
    formal("down_scale", "tensor(float)", "[bottleneck]"),
    formal("down_bias", "tensor(float)", "[bottleneck]"),
    formal("up", "tensor(uint8)", "[bottleneck, width], 128 stands for 0."),
    formal("up_scale", "tensor(float)", "[width]"),
    formal("up_bias", "tensor(float)", "[width]"),
]
_OUTPUTS = [
    formal("y", "tensor(float)", "[..., width]"),
    formal("hidden", "tensor(float)", "[..., bottleneck], what the second product multiplies."),
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
