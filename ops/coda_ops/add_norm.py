"""``ai.coda::AddNorm``: a residual sum and the layer norm of it, in one.

The compiler alone puts it into models, so its torch form is a plain function.
"""

import onnx
import torch.nn.functional as F
from onnx.defs import OpSchema
from torch import Tensor

from coda_ops.domain import formal, function, schema


def add_norm(x: Tensor, y: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """``norm(x + (y + shift)) * scale + bias``, the norm over the last axis.

    Args:
        x, y: [..., width].
        shift: [width], the bias of the product that made y.
        scale, bias: [width].

    Returns:
        [..., width].
    """
    return F.layer_norm(x + (y + shift), scale.shape, scale, bias, epsilon)


SCHEMA = schema(
    "AddNorm",
    "LayerNormalization(x + (y + shift)) over the last axis, with scale and bias.",
    [
        formal("x", "T", "[..., width]"),
        formal("y", "T", "[..., width]"),
        formal("shift", "T", "[width]"),
        formal("scale", "T", "[width]"),
        formal("bias", "T", "[width]"),
    ],
    [formal("out", "T", "[..., width]")],
    attributes=[OpSchema.Attribute("epsilon", OpSchema.AttrType.FLOAT, "Added to the variance.", required=True)],
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only; runtimes fuse them where they can."""
    return function(
        "AddNorm <epsilon> (x, y, shift, scale, bias) => (out)",
        """
        shifted = Add(y, shift)
        sum = Add(shifted, x)
        out = LayerNormalization <axis: int = -1, epsilon: float = @epsilon> (sum, scale, bias)""",
    )
