"""``ai.coda::Adapter``: the light bottleneck that every token goes through."""

from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from coda_ops.domain import formal, function, schema


@torch.library.custom_op("coda::adapter", mutates_args=())
def _adapter(x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    return F.relu(x @ down + down_bias) @ up + up_bias


@_adapter.register_fake
def _(x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, down, down_bias, up, _ = ctx.saved_tensors
    hidden = F.relu(x @ down + down_bias)  # [..., bottleneck]
    grad_hidden = (grad @ up.T).masked_fill(hidden <= 0, 0.0)
    flat_x, flat_grad = x.flatten(0, -2), grad.flatten(0, -2)  # [rows, width]
    flat_hidden, flat_grad_hidden = hidden.flatten(0, -2), grad_hidden.flatten(0, -2)  # [rows, bottleneck]
    return (
        grad_hidden @ down.T,
        flat_x.T @ flat_grad_hidden,
        flat_grad_hidden.sum(0),
        flat_hidden.T @ flat_grad,
        flat_grad.sum(0),
    )


_adapter.register_autograd(_backward, setup_context=_save)


def adapter(x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    """``relu(x · down + down_bias) · up + up_bias``, without the residual.

    Args:
        x: [..., width].
        down: [width, bottleneck]; down_bias: [bottleneck].
        up: [bottleneck, width]; up_bias: [width].

    Returns:
        [..., width].
    """
    result: Tensor = _adapter(x, down, down_bias, up, up_bias)
    return result


INPUTS = [
    formal("x", "T", "[..., width]"),
    formal("down", "T", "[width, bottleneck]"),
    formal("down_bias", "T", "[bottleneck]"),
    formal("up", "T", "[bottleneck, width]"),
    formal("up_bias", "T", "[width]"),
]
SCHEMA = schema(
    "Adapter",
    "Bottleneck: y = relu(x · down + down_bias) · up + up_bias.",
    INPUTS,
    [formal("y", "T", "[..., width]")],
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only."""
    return function(
        "Adapter (x, down, down_bias, up, up_bias) => (y)",
        """
        lowered = MatMul(x, down)
        shifted = Add(lowered, down_bias)
        hidden = Relu(shifted)
        raised = MatMul(hidden, up)
        y = Add(raised, up_bias)""",
    )
