"""``ai.coda::AddNorm``: a residual sum and its layer norm, fused.

Passes make it, so it has no torch operator.
"""

import onnx
from onnx.defs import OpSchema

from coda_ops.domain import formal, function, schema

SCHEMA = schema(
    "AddNorm",
    "LayerNormalization(x + (y + shift)) over the last axis, with scale and bias.",
    [
        formal("x", "T", "[..., width]"),
        formal("y", "T", "[..., width]"),
        formal("shift", "T", "[width], the bias of the linear layer that made y."),
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
