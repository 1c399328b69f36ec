"""``ai.coda::AddLowRank``: a linear map of low rank and the residual sum before it, fused.

Passes make it, so it has no torch operator.
"""

import onnx

from coda_ops.domain import formal, function, schema

SCHEMA = schema(
    "AddLowRank",
    "y = residual + (x · down · up + bias).",
    [
        formal("residual", "T", "[..., width]"),
        formal("x", "T", "[..., width]"),
        formal("down", "T", "[width, rank]"),
        formal("up", "T", "[rank, width]"),
        formal("bias", "T", "[width]"),
    ],
    [formal("y", "T", "[..., width]")],
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only."""
    return function(
        "AddLowRank (residual, x, down, up, bias) => (y)",
        """
        lowered = MatMul(x, down)
        raised = MatMul(lowered, up)
        made = Add(raised, bias)
        y = Add(residual, made)""",
    )
