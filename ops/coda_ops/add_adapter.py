"""``ai.coda::AddAdapter`` and ``AddSwishAdapter``: a bottleneck and the residual sum behind it, in one.

The compiler alone puts them into models, so their torch form is a plain function.
"""

from collections.abc import Callable

import onnx
import torch.nn.functional as F
from torch import Tensor

from coda_ops.adapter import INPUTS
from coda_ops.domain import formal, function, schema

# The statements that make an activation of ``shifted``, and its torch form, by operator.
ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "AddAdapter": ("hidden = Relu(shifted)", F.relu),
    "AddSwishAdapter": ("share = Sigmoid(shifted)\nhidden = Mul(shifted, share)", F.silu),
}


def add_adapter(
    residual: Tensor,
    x: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    *,
    operator: str = "AddAdapter",
) -> Tensor:
    """``residual + (activation(x · down + down_bias) · up + up_bias)``.

    Args:
        residual, x: [..., width].
        down: [width, bottleneck]; down_bias: [bottleneck].
        up: [bottleneck, width]; up_bias: [width].
        operator: one of ``ACTIVATIONS``.

    Returns:
        [..., width].
    """
    return residual + (ACTIVATIONS[operator][1](x @ down + down_bias) @ up + up_bias)


SCHEMAS = [
    schema(
        name,
        f"y = residual + ({activation}(x · down + down_bias) · up + up_bias).",
        [formal("residual", "T", "[..., width]"), *INPUTS],
        [formal("y", "T", "[..., width]")],
    )
    for name, activation in zip(ACTIVATIONS, ("relu", "swish"), strict=True)
]


def body(operator: str) -> onnx.FunctionProto:
    """The function body of one of ``ACTIVATIONS``, standard operators only."""
    return function(
        f"{operator} (residual, x, down, down_bias, up, up_bias) => (y)",
        f"""
        lowered = MatMul(x, down)
        shifted = Add(lowered, down_bias)
        {ACTIVATIONS[operator][0]}
        raised = MatMul(hidden, up)
        made = Add(raised, up_bias)
        y = Add(residual, made)""",
    )
