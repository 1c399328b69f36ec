"""``ai.coda::Int8AddAdapter``: a bottleneck of two int8 products and the residual sum behind it, in one.

The compiler alone puts it into models, so its torch form is a plain function.
"""

import onnx
import torch.nn.functional as F
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


SCHEMA = schema(
    "Int8AddAdapter",
    "y = residual + Int8Linear(relu(Int8Linear(x))).",
    [
        formal("residual", "tensor(float)", "[..., width]"),
        formal("x", "tensor(float)", "[..., width]"),
        formal("down", "tensor(uint8)", "[width, bottleneck], 128 stands for 0."),
        formal("down_scale", "tensor(float)", "[bottleneck]"),
        formal("down_bias", "tensor(float)", "[bottleneck]"),
        formal("up", "tensor(uint8)", "[bottleneck, width], 128 stands for 0."),
        formal("up_scale", "tensor(float)", "[width]"),
        formal("up_bias", "tensor(float)", "[width]"),
    ],
    [
        formal("y", "tensor(float)", "[..., width]"),
        formal("hidden", "tensor(float)", "[..., bottleneck], what the second product multiplies."),
    ],
    floats=False,
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only."""
    constants, down = statements("x", "down", "down_scale", "down_bias", "low")
    _, up = statements("hidden", "up", "up_scale", "up_bias", "high")
    return function(
        "Int8AddAdapter (residual, x, down, down_scale, down_bias, up, up_scale, up_bias) => (y, hidden)",
        f"""{constants}{down}
        hidden = Relu(low)
        {up}
        y = Add(residual, high)""",
    )
